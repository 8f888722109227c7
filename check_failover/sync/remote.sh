# The steps that failover-sync takes on the receiving server beside rsync. Read by `/bin/sh -s -- VERB PATH ...`, so
# nothing has to be installed there; POSIX sh, GNU or BSD tools.
#
# PATH is a symbolic link to one of the copies in PATH.sync. Each copy is made complete before the link moves to it:
#
#   PATH -> PATH.sync/v-000012-3fa1   what the service reads
#   PATH.sync/v-000011-77c0           the copy before it
#   PATH.sync/staging-000013-09be     being filled; nobody reads it
#   PATH.sync/pending                 names the copy before, while it is not yet known that the service likes the new one
#   PATH.sync/lock                    the process whose step changes something here
set -eu
umask 022
verb=$1 path=$2
place=$path.sync
name=${path##*/}

fail() { echo "$1" >&2; exit 1; }

works() { # whether the process $1 is a step of ours; a number comes round again, after a reboot for instance
    kill -0 "$1" 2>/dev/null || return 1
    case $(ps -p "$1" -o args= 2>/dev/null || echo "$path") in *"$path"*) ;; *) return 1 ;; esac
}

alone() { # a run that was killed may have left a step at work here: two must not mix
    mkdir -p "$place"
    tries=0
    until (set -C && echo $$ >"$place/lock") 2>/dev/null; do
        holder=$(cat "$place/lock" 2>/dev/null || :)
        if [ -n "$holder" ] && works "$holder"; then
            tries=$((tries + 1))
            [ "$tries" -le 40 ] || fail "an earlier step (process $holder) is still at work"
            sleep 1
        elif [ -s "$place/lock" ] || [ "$tries" -gt 2 ]; then
            rm -f "$place/lock"
        else
            [ -w "$place" ] || fail "$place: cannot write there"
            tries=$((tries + 1))
            sleep 1
        fi
    done
    trap 'rm -f "$place/lock"' EXIT
}

current() { # the serving copy's name, or nothing
    [ -L "$path" ] || return 0
    link=$(readlink "$path")
    case $link in "$name.sync"/v-*) echo "${link##*/}" ;; esac
}

point() { # move the link to the copy $1 in one step, rename(2)
    rm -f "$place"/link-*
    ln -s "$name.sync/$1" "$place/link-$1"
    # -T (GNU) and -h (BSD): replace the link, do not move into the directory behind it
    mv -T "$place/link-$1" "$path" 2>/dev/null || mv -h "$place/link-$1" "$path"
}

flush() { sync -f "$place" 2>/dev/null || sync; } # what the link points to must outlive a power cut

case $verb in
inspect)
    copy=$(current)
    if [ -n "$copy" ]; then
        echo "current $copy"
    elif [ -L "$path" ]; then
        echo "foreign $(readlink "$path")"
    elif [ -d "$path" ]; then
        echo "directory $path"
    elif [ -e "$path" ]; then
        echo "foreign $path"
    fi
    if [ -s "$place/pending" ]; then echo "pending $(cat "$place/pending")"; fi
    ;;

prepare) # new staging directory with the suffix $3; the newest unfinished one stays as a source of finished files
    [ -d "${path%/*}/" ] || fail "${path%/*}: no such directory: make it once by hand"
    alone
    keep=
    for old in "$place"/staging-*; do if [ -d "$old" ]; then keep=$old; fi; done
    for old in "$place"/staging-*; do
        if [ -d "$old" ] && [ "$old" != "$keep" ]; then rm -rf -- "$old"; fi
    done
    last=0
    for old in "$place"/staging-* "$place"/v-*; do
        number=${old#"$place"/*-}
        number=${number%%-*}
        case $number in
        [0-9][0-9][0-9][0-9][0-9][0-9]*) number=$(echo "$number" | sed 's/^0*//'); if [ "${number:-0}" -gt "$last" ]; then last=$number; fi ;;
        esac
    done
    copy=$(printf '%06d-%s' $((last + 1)) "$3")
    mkdir -m 700 "$place/staging-$copy"
    echo "copy $copy"
    if [ -n "$keep" ]; then echo "leftover ${keep##*/}"; fi
    ;;

switch) # $3: the staged copy becomes the serving one
    alone
    old=$(current)
    mv "$place/staging-$3" "$place/v-$3"
    echo "${old:--}" >"$place/pending.new"
    mv "$place/pending.new" "$place/pending"
    flush
    point "v-$3"
    flush
    ;;

settle)
    alone
    rm -f "$place/pending"
    ;;

back) # the service did not like the new copy: the one before serves again
    alone
    old=$(cat "$place/pending")
    [ "$old" != - ] || fail "there is no copy before this one"
    [ -d "$place/$old" ] || fail "$place/$old: the copy before is gone"
    bad=$(current)
    point "$old"
    rm -f "$place/pending"
    flush
    if [ -n "$bad" ] && [ "$bad" != "$old" ]; then mv "$place/$bad" "$place/staging-${bad#v-}"; fi
    ;;

discard)
    alone
    for old in "$place"/staging-*; do if [ -d "$old" ]; then rm -rf -- "$old"; fi; done
    ;;

prune) # leave the serving copy and the newest $3 - 1 before it
    alone
    copy=$(current)
    [ -n "$copy" ] || fail "$path: not a link to a copy"
    left=$(($3 - 1)) older=
    for old in "$place"/v-*; do # in the order of their numbers
        if [ "${old##*/}" = "$copy" ]; then break; fi
        older="${old##*/} $older"
    done
    for old in $older; do
        if [ "$left" -gt 0 ]; then left=$((left - 1)); else rm -rf -- "${place:?}/$old"; fi
    done
    past=
    for old in "$place"/v-*; do # newer than the serving one: staged, never switched to
        if [ -n "$past" ]; then rm -rf -- "$old"; fi
        if [ "${old##*/}" = "$copy" ]; then past=1; fi
    done
    rm -rf -- "$place"/staging-* "$place/partial"
    ;;

adopt) # an ordinary directory becomes the first copy
    [ ! -L "$path" ] || fail "$path: is a link already"
    [ -d "$path" ] || fail "$path: no such directory"
    alone
    mv "$path" "$place/v-000000-adopted"
    ln -s "$name.sync/v-000000-adopted" "$path" || {
        mv "$place/v-000000-adopted" "$path"
        fail "$path: cannot make the link; the directory is back"
    }
    ;;

*) fail "unknown verb $verb" ;;
esac
