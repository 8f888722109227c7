# The steps of failover-sync on the receiving server, apart from rsync. `/bin/sh -s -- VERB PATH ...` reads this script
# from stdin, so nothing has to be installed there; it needs POSIX sh and GNU or BSD tools.
#
# PATH is a symbolic link to one of the copies in PATH.sync. A copy is complete before the link moves to it:
#
#   PATH -> PATH.sync/v-000012-3fa1   what the service reads
#   PATH.sync/v-000011-77c0           the previous copy
#   PATH.sync/staging-000013-09be     rsync fills it; no service reads it
#   PATH.sync/kept-20260102T030405-standby   data that a person let go: no step removes it
#   PATH.sync/pending                 name of the previous copy, from the switch until the service accepted the new copy
#   PATH.sync/lease                   link that names the controller whose run works here, and until when
#   PATH.sync/lock                    link named after the process id of the step that is changing something here; a
#                                     link needs no block of a full disk
set -eu
umask 022
verb=$1 path=$2
place=$path.sync
name=${path##*/}

fail() { echo "$1" >&2; exit 1; }

works() { # whether the process $1 is a step of failover-sync; after a reboot another process may have its id
    kill -0 "$1" 2>/dev/null || return 1
    case $(ps -p "$1" -o args= 2>/dev/null || echo "$path") in *"$path"*) ;; *) return 1 ;; esac
}

alone() { # take the lock: a step of a killed run may still be running, and two steps must not run at once
    mkdir -p "$place"
    tries=0
    until why=$(ln -s $$ "$place/lock" 2>&1); do
        tries=$((tries + 1))
        holder=$(readlink "$place/lock" || cat "$place/lock" 2>/dev/null || :)
        [ -w "$place" ] || fail "$place: no write permission"
        if [ -n "$holder" ] && works "$holder"; then
            [ "$tries" -le 40 ] || fail "an earlier step (process $holder) is still running"
            sleep 1
        elif [ "$tries" -le 3 ]; then
            rm -f "$place/lock"
        else
            fail "$place/lock: cannot create it: $why"
        fi
    done
    trap 'rm -f "$place/lock"' EXIT
}

free() { df -Pk "$place" | awk 'NR == 2 { print $4 }'; } # KiB that are free where the copies are

current() { # print the name of the serving copy, or nothing if there is none
    [ -L "$path" ] || return 0
    link=$(readlink "$path")
    case $link in "$name.sync"/v-*) echo "${link##*/}" ;; esac
}

point() { # point the link to the copy $1 atomically, by rename(2)
    rm -f "$place"/link-*
    ln -s "$name.sync/$1" "$place/link-$1"
    # -T (GNU) and -h (BSD): replace the link, do not move into the directory behind it
    mv -T "$place/link-$1" "$path" 2>/dev/null || mv -h "$place/link-$1" "$path"
}

hold() { # take or renew the lease for $2 seconds as the holder $1; if another one has it: name it, and do nothing more
    now=$(date +%s)
    lease=$(readlink "$place/lease" || :)
    if [ -n "$lease" ] && [ "${lease#* }" != "$1" ] && [ "${lease%% *}" -gt "$now" ]; then
        echo "held $((${lease%% *} - now)) ${lease#* }"
        exit 0
    fi
    if [ "$3" = look ]; then return; fi
    rm -f "$place/lease"
    ln -s "$((now + $2)) $1" "$place/lease" || fail "$place/lease: cannot create it"
}

flush() { sync -f "$place" 2>/dev/null || sync; } # the copy behind the link must survive a power failure

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
    echo "now $(date +%s.%N)" # BSD's date prints "N" for the fraction
    known=$(${3:-rsync} --version 2>/dev/null | tr '\n' ' ') # $3: what to run as rsync, in words
    case $known in *"no ACLs"*) ;; *" ACLs"*) echo "acls yes" ;; esac
    case $known in *"no xattrs"*) ;; *" xattrs"*) echo "xattrs yes" ;; esac
    ;;

served) # after a killed run: the copy that clients wrote to since the link moved; "both": the service was restarted between
    # a file that only one copy has (-links 1) belongs to the service; who only reads LMDB writes to lock.mdb, too;
    # without a write finishing the switch loses nothing
    old=$(cat "$place/pending") new=$(current)
    written() { [ -n "$(find "$place/$1/" -type f -links 1 -newer "$place/pending" ! -name lock.mdb | head -n 1)" ]; }
    if [ -z "$new" ] || [ ! -d "$place/$old" ] || [ "$old" = "$new" ] || ! written "$old"; then
        echo "served new"
    elif written "$new"; then
        echo "served both"
        echo "old $old"
    else
        echo "served old"
    fi
    ;;

lease) # for the holder $3, $4 seconds long
    if [ -e "$path" ] && [ -z "$(current)" ]; then exit 0; fi # not ours: nothing may be made there
    [ -d "${path%/*}/" ] || fail "${path%/*}: no such directory: create it once by hand"
    hold "$3" "$4" look # without waiting for a step of the other run
    alone
    hold "$3" "$4" take
    ;;

release)
    case $(readlink "$place/lease" || :) in *" $3") rm -f "$place/lease" ;; esac
    ;;

prepare) # for the holder $3, for $4 seconds: make a staging directory with the suffix $5 for $6 bytes; keep the newest unfinished one for rsync to reuse
    alone
    hold "$3" "$4" take
    keep=
    for old in "$place"/staging-*; do if [ -d "$old" ]; then keep=$old; fi; done
    for old in "$place"/staging-*; do
        if [ -d "$old" ] && [ "$old" != "$keep" ]; then rm -rf -- "$old"; fi
    done
    wanted=$(($6 / 1024))
    if [ -n "$keep" ]; then # where space is short, an unfinished copy takes the space that the new one needs
        size=$(du -sk "$keep" | cut -f 1)
        if [ "$(free)" -lt "$size" ] || [ "$(free)" -le "$wanted" ]; then
            rm -rf -- "$keep"
            keep=
        fi
    fi
    have=$(free)
    [ "$have" -gt "$wanted" ] || fail "$have KiB are free, the new copy needs $wanted KiB: make space"
    last=0
    for old in "$place"/staging-* "$place"/v-*; do
        number=${old#"$place"/*-}
        number=${number%%-*}
        case $number in
        [0-9][0-9][0-9][0-9][0-9][0-9]*) number=$(echo "$number" | sed 's/^0*//'); if [ "${number:-0}" -gt "$last" ]; then last=$number; fi ;;
        esac
    done
    copy=$(printf '%06d-%s' $((last + 1)) "$5")
    mkdir -m 700 "$place/staging-$copy"
    echo "copy $copy"
    if [ -n "$keep" ]; then echo "leftover ${keep##*/}"; fi
    ;;

switch) # for the holder $3, for $4 seconds: the staged copy $5 becomes the serving copy
    alone
    hold "$3" "$4" take
    old=$(current)
    mv "$place/staging-$5" "$place/v-$5"
    echo "${old:--}" >"$place/pending.new"
    mv "$place/pending.new" "$place/pending"
    flush
    point "v-$5"
    flush
    ;;

settle)
    alone
    rm -f "$place/pending"
    ;;

back) # the service rejected the new copy: the previous copy serves again
    alone
    old=$(cat "$place/pending")
    [ "$old" != - ] || fail "there is no previous copy"
    [ -d "$place/$old" ] || fail "$place/$old: the previous copy is gone"
    bad=$(current)
    point "$old"
    rm -f "$place/pending"
    flush
    if [ -n "$bad" ] && [ "$bad" != "$old" ]; then mv "$place/$bad" "$place/staging-${bad#v-}"; fi
    ;;

discard)
    alone
    echo "free $(free)"
    for old in "$place"/staging-*; do if [ -d "$old" ]; then rm -rf -- "$old"; fi; done
    ;;

prune) # keep the serving copy and the newest $3 - 1 copies before it
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
    for old in "$place"/v-*; do # copies newer than the serving one were staged, but never served
        if [ -n "$past" ]; then rm -rf -- "$old"; fi
        if [ "${old##*/}" = "$copy" ]; then past=1; fi
    done
    rm -rf -- "$place"/staging-* "$place/partial"
    ;;

keep) # put the data in $4 aside under the name $3
    [ -d "$4/" ] || fail "$4: no such directory"
    alone
    rm -rf -- "$place/keeping"
    mkdir -m 700 "$place/keeping"
    # what a copy of ours has, is a link there: it is never changed in place
    case $4 in "$path") cp -Rpl "$4/." "$place/keeping" ;; *) cp -Rp "$4/." "$place/keeping" ;; esac
    mv "$place/keeping" "$place/$3"
    flush
    ;;

adopt) # turn an ordinary directory into the first copy
    [ ! -L "$path" ] || fail "$path: is already a link"
    [ -d "$path" ] || fail "$path: no such directory"
    alone
    mv "$path" "$place/v-000000-adopted"
    ln -s "$name.sync/v-000000-adopted" "$path" || {
        mv "$place/v-000000-adopted" "$path"
        fail "$path: cannot create the link; the directory is back in its place"
    }
    ;;

*) fail "unknown verb $verb" ;;
esac
