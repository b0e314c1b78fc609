"""What our stand-in for compilers notes of the bundled libraries' builds: what evidence.py judges them by."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import PurePosixPath

SEEN, OUTSIDE = "dependencies-seen", "dependencies-outside"
"""Files in the build's scratch directory: what calls wrote that could look at nothing else, and what showed that one
could. The first is no less needed: a full disk may lose a line of either."""

_SHELL = """\
# kwdb_path NAME: its absolute form, without . and .., in kwdb_name. Links are not followed: where one leads elsewhere,
# nothing is believed afterwards.
kwdb_path() {
    case $1 in /*) kwdb_rest=$1 ;; *) kwdb_rest=$PWD/$1 ;; esac
    kwdb_name=
    while [ -n "$kwdb_rest" ]; do
        kwdb_part=${kwdb_rest%%/*}
        case $kwdb_rest in */*) kwdb_rest=${kwdb_rest#*/} ;; *) kwdb_rest= ;; esac
        case $kwdb_part in
            '' | .) ;;
            ..) kwdb_name=${kwdb_name%/*} ;;
            *) kwdb_name=$kwdb_name/$kwdb_part ;;
        esac
    done
}
# kwdb_named NAME: it must lie in a place or in the sources of dependencies, not be one (what is included from there
# could climb out by one ..), or have nothing to do with KWDB's tree.
kwdb_named() {
    case $1 in
        *..* | . | ./* | */. | */./* | *//*) kwdb_path "$1" ;;
        /*) kwdb_name=$1 ;;
        *) kwdb_name=$PWD/$1 ;;
    esac
    case $kwdb_name in
        @PLACES@ | @SOURCES@) ;;
        '' | / | @ROOT@ | @ROOT@/*) kwdb_outside=$1 ;;
    esac
}
# kwdb_call ARGUMENT...: sees to one call of a compiler.
kwdb_call() {
    kwdb_of= kwdb_output= kwdb_outside= kwdb_last=
    case $PWD/ in @PLACES@ | @SOURCES@) kwdb_of=1 ;; esac
    for kwdb_word in "$@"; do
        case $kwdb_last in -o) kwdb_output=$kwdb_word ;; esac
        case $kwdb_word in -o?*) kwdb_output=${kwdb_word#-o} ;; esac
        kwdb_last=$kwdb_word
    done
    if [ -n "$kwdb_output" ]; then
        kwdb_path "$kwdb_output"
        kwdb_output=$kwdb_name
        case $kwdb_output in @PLACES@) kwdb_of=1 ;; esac
    fi
    [ -n "$kwdb_of" ] || return 0
    for kwdb_word in "$CPATH" "$C_INCLUDE_PATH" "$CPLUS_INCLUDE_PATH" "$OBJC_INCLUDE_PATH" "$COMPILER_PATH"; do
        case :$kwdb_word: in
            ::) ;;
            *::* | *:[!/:]* | *..* | *:@ROOT@/* | *:@ROOT@:*) kwdb_outside=$kwdb_word ;;
        esac
    done
    kwdb_last=
    for kwdb_word in "$@"; do
        kwdb_value=
        case $kwdb_last in
            # Outputs, and where the linker looks: for libraries, which are no headers.
            -o | -MF | -MT | -MQ | -MJ | -L | -l | -Xlinker) kwdb_last=; continue ;;
            -D | -U) kwdb_value=-D$kwdb_word ;;
        esac
        kwdb_last=$kwdb_word
        case ${kwdb_value:-$kwdb_word} in
            -o* | -MF* | -MT* | -MQ* | -L* | -l* | -Wl,*) continue ;;
            @* | -specs* | --config* | --i* | --specs* | --sysroot* | -W[ap],*-[Ii]*) kwdb_outside=$kwdb_word ;;
            -D*) case $kwdb_word in *../* | *@ROOT@/* | *@ROOT@) kwdb_outside=$kwdb_word ;; esac ;;
            -I*) kwdb_value=${kwdb_word#-I} ;;
            -B*) kwdb_value=${kwdb_word#-B} ;;
            -isystem*) kwdb_value=${kwdb_word#-isystem} ;;
            -iquote*) kwdb_value=${kwdb_word#-iquote} ;;
            -idirafter*) kwdb_value=${kwdb_word#-idirafter} ;;
            -include*) kwdb_value=${kwdb_word#-include} ;;
            -imacros*) kwdb_value=${kwdb_word#-imacros} ;;
            -isysroot*) kwdb_value=${kwdb_word#-isysroot} ;;
            -i*) kwdb_outside=$kwdb_word ;;
            -*) case $kwdb_word in *..* | *@ROOT@/* | *@ROOT@) kwdb_outside=$kwdb_word ;; esac ;;
            *) kwdb_value=$kwdb_word ;;
        esac
        case $kwdb_value in
            '' | -D*) ;;
            *) kwdb_named "${kwdb_value#=}" ;;  # =dir: below the system's root, which is /
        esac
    done
    if [ -n "$kwdb_outside" ]; then
        printf '%s\\n' "$kwdb_outside" >> @SCRATCH@/@OUTSIDE@
        return 0
    fi
    if [ -n "$kwdb_output" ]; then
        printf '%s\\n' "$kwdb_output" >> @SCRATCH@/@SEEN@
        return 0
    fi
    for kwdb_word in "$@" a.out; do
        case $kwdb_word in -*) continue ;; esac
        kwdb_word=${kwdb_word##*/}
        case $kwdb_word in a.out) ;; *) kwdb_word=${kwdb_word%.*}.o ;; esac
        printf '%s\\n' "${PWD%/}/$kwdb_word" >> @SCRATCH@/@SEEN@
    done
}
# What cannot be noted is said to nobody: configure scripts take what a compiler says for its opinion.
case ${0##*/} in cmake) ;; *) kwdb_call "$@" 2> /dev/null ;; esac
"""
"""Only what the shell does itself: it runs for every compilation."""



def shell(
    *, root: PurePosixPath, places: Iterable[PurePosixPath], sources: Iterable[PurePosixPath], scratch: PurePosixPath
) -> str:
    """Shell text for the stand-in of compilers, which sees to its arguments.

    root: what is mounted as GOPATH; places and sources: of dependencies.
    """
    text = _SHELL
    for mark, value in (
        ("PLACES", " | ".join(f"{place}/?*" for place in places)),
        ("SOURCES", " | ".join(f"{place}/?*" for place in sources)),
        ("ROOT", str(root)), ("SCRATCH", str(scratch)), ("SEEN", SEEN), ("OUTSIDE", OUTSIDE),
    ):
        text = text.replace(f"@{mark}@", value)
    return text
