"""Our stand-ins for programs, and what a build is started by: shell texts that are mounted first in a build's PATH."""

from __future__ import annotations

from kwdb_build.build import sight
from kwdb_build.build.recipe import DEPENDENCIES, DEPENDENCIES_TIME, GOPATH, NATIVE, SCRATCH, SHIMS, SOURCE, THIRD_PARTY

_PLACES = (NATIVE, THIRD_PARTY, *(SOURCE / name for name in DEPENDENCIES))
_TIME_OF_PLACE = f"""\
last=-o
for word in "$PWD/" "$@"; do
    case "$last $word" in
        {" | ".join(f'"-o {place}"/* | *" -o{place}"/*' for place in _PLACES)})
            export SOURCE_DATE_EPOCH={DEPENDENCIES_TIME} library=yes ;;
    esac
    last=$word
done
"""
"""For what runs in a place of dependencies or in their sources (libedit's configure.ac asks for the day when autoconf
reads it there), or writes to one by its absolute name."""

DATE_SHIM = f"""\
#!/bin/sh
# `date` of a build: the time of the commit instead of now, so that two builds agree. What asks for a file's time, or
# names a time itself, is answered by the real one.
for argument in "$@"; do
    case "$argument" in
        -r* | --reference* | -d* | --date* | -f* | --file* | -s* | --set*) exec /bin/date "$@" ;;
    esac
done
{_TIME_OF_PLACE}\
exec /bin/date -d "@${{SOURCE_DATE_EPOCH:?}}" "$@"
"""

_ORDER = "order.cmake"
ANSWER = "version"
"""File in the scratch directory: what the built kwbase said of its version, and its exit code in a last line."""
ANSWER_S = 120
"""How long it may take for that."""

_SIGHT = sight.shell(
    root=GOPATH, places=(NATIVE, THIRD_PARTY), sources=tuple(SOURCE / name for name in DEPENDENCIES), scratch=SCRATCH
)

TOOL_SHIM = f"""\
#!/bin/sh
# Any compiler, by way of ccache, and cmake (where it is called by this name): with a time of their own for
# dependencies, of whose compilations it notes whether they could look at KWDB's own files. A compiler that lists all it
# reads need not run its preprocessor for ccache first, and what CMake only tries, in a directory with a new name each
# time, ccache would never find again.
library=
{_TIME_OF_PLACE}\
{_SIGHT}\
case "$KWDB_DEPEND$library  $* " in
    *" -MMD "*) ;;  # leaves headers out that lie where -isystem says
    all*" -MD "* | "own "*" -MD "*) export CCACHE_DEPEND=1 ;;
esac
case " $* " in  # macros, or the command line, get into the object as they are
    *" -g3 "* | *" -ggdb3 "* | *" -fdebug-macro "* | *" -frecord-gcc-switches "* | *" -"[fg]"record-command-line "* | \
    *" @"*)
        unset CCACHE_IGNOREOPTIONS ;;
esac
name=${{0##*/}}
case "$name  $* " in
    "cmake "*" -S {SOURCE} "*) set -- "$@" "-DCMAKE_PROJECT_INCLUDE={SHIMS}/{_ORDER}" ;;
esac
IFS=:
for directory in $KWDB_PATH; do
    [ -x "$directory/$name" ] || continue
    case $name:$PWD in cmake:* | *:*/CMakeFiles/*) KWDB_CCACHE= ;; esac
    if [ -x "$KWDB_CCACHE" ]; then
        # Without -g ccache forgets from where it looked: the same words elsewhere can find other headers.
        CPATH=$CPATH:/kwdb-includes$PWD
        export CPATH
        exec "$KWDB_CCACHE" "$directory/$name" "$@"
    fi
    exec "$directory/$name" "$@"
done
echo "$name: not in $KWDB_PATH" >&2
exit 127
"""

GO_SHIM = """\
#!/bin/sh
# `go`. What it installs it links anew in each fresh tree, as its cache holds packages only, and KWDB installs two dozen
# programs to generate code with. So those that an earlier build linked are laid where Go will look: it reads the build
# ID in each, which stands for all that was linked, and leaves alone what it would have linked again.
go=
IFS=:
for directory in $KWDB_PATH; do
    [ ! -x "$directory/go" ] || { go=$directory/go; break; }
done
unset IFS
[ -n "$go" ] || { echo "go: not in $KWDB_PATH" >&2; exit 127; }
case "$KWDB_LINKED $1 $GOBIN" in
    /*" install "/*) ;;
    *) exec "$go" "$@" ;;
esac
names=
for word in "$@"; do
    word=${word##*/}
    case $word in '' | [!A-Za-z0-9]* | *[!A-Za-z0-9._+-]*) ;; *) names="$names $word" ;; esac
done
for name in $names; do
    [ ! -e "$GOBIN/$name" ] || continue
    for kept in "$KWDB_LINKED/$name"/*; do
        [ -f "$kept" ] && mkdir -p "$GOBIN" && cp "$kept" "$GOBIN/.$name.$$" || continue
        # Go believes what the build ID says of the rest of the file.
        case $(sha256sum < "$GOBIN/.$name.$$") in
            "${kept##*/} "*)
                touch -d @0 "$GOBIN/.$name.$$" && mv "$GOBIN/.$name.$$" "$GOBIN/$name" && touch -c "$kept" ;;
            *) rm -f "$kept" "$GOBIN/.$name.$$" ;;
        esac
    done
done 2> /dev/null
"$go" "$@" || exit
for name in $names; do
    made=$GOBIN/$name place=$KWDB_LINKED/$name
    [ -f "$made" ] || continue
    # Go gives the time of now to what it leaves alone, too. What it was not asked for would not be there.
    [ "$made" -nt "$0" ] || { rm -f "$made"; continue; }
    for kept in "$place"/*; do
        cmp -s "$made" "$kept" && continue 2
    done
    sum=$(sha256sum < "$made") && mkdir -p "$place" || continue
    rm -f "$place"/* "$place"/.new.*
    cp "$made" "$place/.new.$$" && mv "$place/.new.$$" "$place/${sum%% *}" || rm -f "$place/.new.$$"
done 2> /dev/null
exit 0
"""

ENTER = f"""\
#!/bin/sh
# enter UMASK COMMAND...: runs the build with a fixed umask (an engine may pass its own on), and notes meanwhile how
# many pages of memory all processes in here hold, now and at most. Shared pages are counted once for each. After a
# build that succeeded it notes what the kwbase in KWDB_ASKED, if that is given, says of its version.
umask "$1"
shift
[ -z "$KWDB_CCACHE" ] || KWDB_CCACHE=$(PATH=$KWDB_PATH command -v ccache)
export KWDB_CCACHE
mkdir -p "$TMPDIR/tools"
(
    IFS=:
    for directory in $KWDB_PATH; do
        for name in cmake cc c++ gcc g++ clang clang++ 'c[89]9' 'c[89]9-gcc' 'gcc-[0-9]*' 'g++-[0-9]*' 'clang-[0-9]*' \
            'clang++-[0-9]*' '*-linux-gnu*-gcc' '*-linux-gnu*-g++' '*-linux-gnu*-gcc-[0-9]*' '*-linux-gnu*-g++-[0-9]*'
        do
            for file in "$directory"/$name; do
                [ -x "$file" ] && ln -sf {SHIMS}/tool "$TMPDIR/tools/${{file##*/}}"
            done
        done
    done
)
(
    most=0
    while :; do
        now=0
        for file in /proc/[0-9]*/statm; do
            {{ read -r _ pages _ < "$file"; }} 2> /dev/null && now=$((now + pages))
        done
        [ "$now" -gt "$most" ] && most=$now
        echo "$now $most" > "$TMPDIR/memory"
        sleep 2
    done
) > /dev/null 2>&1 &
watch=$!
"$@"
code=$?
# kwdb_move FROM TO: of those in GOPATH that are there; never into a directory that has the name.
kwdb_move() {{
    for place in src native; do
        [ ! -e "$GOPATH/$1$place" ] || mv -T "$GOPATH/$1$place" "$GOPATH/$2$place" || return
    done
}}
if [ "$code" = 0 ] && [ -n "$KWDB_ASKED" ]; then
    # By itself, as on a machine where nobody built it: what it was made of is not in its place meanwhile. And called
    # from elsewhere: what it may leave where it lies would be stored.
    if mkdir "$TMPDIR/asked" && cd "$TMPDIR/asked" && kwdb_move '' .; then
        (
            ulimit -f 2048  # blocks of 512 bytes
            exec env -i PATH="$KWDB_PATH" LC_ALL=C.UTF-8 TZ=UTC HOME=/tmp LD_LIBRARY_PATH="${{KWDB_ASKED%/*}}/lib" \
                ASAN_OPTIONS="$KWDB_ASAN_OPTIONS" timeout -k 5 {ANSWER_S} "$KWDB_ASKED/kwbase" version
        ) > "$TMPDIR/{ANSWER}" 2>&1 < /dev/null
        printf '\\n%s\\n' "$?" >> "$TMPDIR/{ANSWER}"
    fi
    kwdb_move . '' || code=1
fi
kill "$watch" 2> /dev/null
exit "$code"
"""

ORDER = """\
# Included by each project() of KWDB. brpc's own CMake looks for gflags, which KWDB builds too, without saying that it
# comes first (V3.2.0, V3.2.1): with one job it does not, and with several only while protobuf takes long to compile.
if(PROJECT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR AND NOT CMAKE_VERSION VERSION_LESS 3.19)
  function(kwdb_build_order)
    if(TARGET brpc AND TARGET gflags_src)
      add_dependencies(brpc gflags_src)
    endif()
  endfunction()
  cmake_language(DEFER CALL kwdb_build_order)
endif()
"""

FILES = {"date": DATE_SHIM, "enter": ENTER, "go": GO_SHIM, "tool": TOOL_SHIM, _ORDER: ORDER}
"""By their names in SHIMS."""
