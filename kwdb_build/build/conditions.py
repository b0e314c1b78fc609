"""Under what a build runs: what must not matter for its result, and is changed on purpose to see that it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kwdb_build.build.recipe import UMASK
from kwdb_build.engine.base import HOSTNAME

PRELOAD = PurePosixPath("/kwdb-otherwise")
"""Where the library of ELSEWHERE_C is mounted."""
LIBRARY = "elsewhere.so"
TIMEOUT_S = 12 * 3600.0
"""For a build with another clock: a program that waits until a time of day could wait for years."""
CLOCK_AHEAD_S = 3 * 366 * 86_400 + 5 * 3_600 + 17 * 60 + 11


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The surroundings of one build.

    umask is octal text; identity (uid, gid), None for the build's own user; cores 0 for all of them. ahead_s: how far
    the clock is ahead; backwards: whether directories are read so (both by ELSEWHERE_C).
    """

    umask: str = UMASK
    hostname: str = HOSTNAME
    environment: dict[str, str] = field(default_factory=dict)
    identity: tuple[int, int] | None = None
    jobs: int = 0
    cores: int = 0
    ahead_s: int = 0
    backwards: bool = False

    @property
    def library(self) -> tuple[str, ...]:
        """What ELSEWHERE_C is compiled with; () when it is not needed."""
        return (f"-DAHEAD={self.ahead_s}", f"-DBACKWARDS={self.backwards:d}") if self.ahead_s or self.backwards else ()

    def wrap(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """The command line with this umask, on these cores. argv begins with enter and its umask."""
        changed = (argv[0], self.umask, *argv[2:])
        return ("taskset", "--cpu-list", f"0-{self.cores - 1}", *changed) if self.cores else changed


USUAL = Conditions()


def unlike(usual_jobs: int, *, as_root: bool) -> Conditions:
    """As different as it gets without other hardware. Another user only where we may choose one."""
    return Conditions(
        umask="077",
        hostname="another-machine",
        # A zone without a file of its own: images have none. The locale need not be there to be asked for.
        environment={
            "TZ": "QQT-05:45", "LC_ALL": "C", "LANG": "tr_TR.UTF-8", "LANGUAGE": "tr", "USER": "somebody-else",
            "LOGNAME": "somebody-else", "COLUMNS": "203", "GOMAXPROCS": "1",
        },
        identity=(54_321, 43_210) if as_root else None,
        jobs=1 if usual_jobs > 1 else 2,
        cores=1,
        ahead_s=CLOCK_AHEAD_S,
        backwards=True,
    )


ELSEWHERE_C = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

/* Preloaded into every program of a build: the time of day is AHEAD seconds later, and directories are read backwards
   if BACKWARDS. Clocks that only measure are left alone, so that waiting takes as long as ever. */

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = next("clock_gettime");
    int result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += AHEAD;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = next("gettimeofday");
    int result = real(now, zone);
    if (result == 0) now->tv_sec += AHEAD;
    return result;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

/* What is left of the directories that are being read. */
struct listing { DIR *dir; struct dirent **entries; size_t left; struct listing *more; };
static struct listing *listings;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void forget(DIR *dir) {
    for (struct listing **at = &listings; *at; at = &(*at)->more) {
        struct listing *found = *at;
        if (found->dir != dir) continue;
        *at = found->more;
        while (found->left) free(found->entries[--found->left]);
        free(found->entries);
        free(found);
        return;
    }
}

static struct listing *listing_of(DIR *dir, struct dirent *(*real)(DIR *)) {
    for (struct listing *at = listings; at; at = at->more) if (at->dir == dir) return at;
    struct listing *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    made->dir = dir;
    for (struct dirent *entry; (entry = real(dir)); ) {
        struct dirent **grown = realloc(made->entries, (made->left + 1) * sizeof *grown);
        struct dirent *copy = malloc(entry->d_reclen > sizeof *entry ? entry->d_reclen : sizeof *entry);
        if (!grown || !copy) abort();
        memcpy(copy, entry, entry->d_reclen);
        made->entries = grown;
        made->entries[made->left++] = copy;
    }
    made->more = listings;
    listings = made;
    return made;
}

struct dirent *readdir(DIR *dir) {
    static struct dirent *(*real)(DIR *);
    static __thread struct dirent *given;
    if (!real) real = next("readdir");
    if (!BACKWARDS) return real(dir);
    pthread_mutex_lock(&gate);
    struct listing *found = listing_of(dir, real);
    free(given);
    given = found && found->left ? found->entries[--found->left] : NULL;
    pthread_mutex_unlock(&gate);
    return given;
}

struct dirent64 *readdir64(DIR *dir) { return (struct dirent64 *)readdir(dir); }

int closedir(DIR *dir) {
    static int (*real)(DIR *);
    if (!real) real = next("closedir");
    pthread_mutex_lock(&gate);
    forget(dir);
    pthread_mutex_unlock(&gate);
    return real(dir);
}

void rewinddir(DIR *dir) {
    static void (*real)(DIR *);
    if (!real) real = next("rewinddir");
    pthread_mutex_lock(&gate);
    forget(dir);
    pthread_mutex_unlock(&gate);
    real(dir);
}
"""
