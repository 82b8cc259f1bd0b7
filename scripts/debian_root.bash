# Debian systems in a folder of their own, for checks that must not see what this machine has installed. To be sourced,
# not run. Needs root.
# shellcheck shell=bash

# shellcheck source=scripts/say.bash
source scripts/say.bash

# make_debian_root SUITE ROOT: a minimal Debian in ROOT; nothing to do where it is complete.
make_debian_root() {
  local suite=$1 root=$2 log
  ((EUID == 0)) || fail "only root can set up another Debian (debootstrap, chroot)"
  if [[ ! -e $root/.complete ]]; then
    if ! command -v debootstrap > /dev/null; then
      apt-get update -qq
      apt-get install -y -qq --no-install-recommends debootstrap > /dev/null
    fi
    say "a minimal Debian ($suite) into $root"
    log=$(mktemp)
    rm -rf "$root"
    debootstrap --variant=minbase "$suite" "$root" > "$log" 2>&1 || {
      tail -n 20 "$log" >&2
      fail "debootstrap failed; its whole log is $log"
    }
    rm "$log"
    touch "$root/.complete"
  fi
  carry_network_settings "$root"
}

# carry_network_settings ROOT: ROOT reaches package registries the way this machine does: name servers, proxies,
# mirrors, and certificates that the machine's owner added.
carry_network_settings() {
  local root=$1 file
  for file in /etc/resolv.conf /etc/environment /etc/pip.conf /etc/npmrc /usr/local/share/ca-certificates/*.crt; do
    [[ ! -e $file ]] || install -D -m 644 "$file" "$root$file"
  done
  for file in /etc/apt/apt.conf.d/*; do
    if grep -qs '^ *Acquire' "$file"; then install -D -m 644 "$file" "$root$file"; fi
  done
}

# in_debian_root ROOT COMMAND [FOLDER PATH]: runs COMMAND by bash in ROOT, with nothing of this shell's environment but
# the proxies; FOLDER is seen at PATH. ROOT has a /proc of its own and sees only its own processes; they and all
# mounts end with the command, and when this shell is stopped.
in_debian_root() {
  local root=$1 command=$2 folder=${3:-} path=${4:-} name status=0
  local environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root)
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [[ -z ${!name:-} ]] || environment+=("$name=${!name}")
  done
  [[ -z $folder ]] || mkdir -p "$folder" "$root$path"
  # In the background, because bash acts on a signal only between two commands, but ends `wait` at once. Commands in the
  # background ignore an interrupt, which programs in there must not inherit.
  # shellcheck disable=SC2016  # the inner shell expands these
  unshare --mount --pid --fork --kill-child bash -c '
    set -e
    root=$1 folder=$2 path=$3
    shift 3
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    [[ -z $folder ]] || mount --bind "$folder" "$root$path"
    exec chroot "$root" /usr/bin/env -i --default-signal=INT,QUIT "$@"
  ' - "$root" "$folder" "$path" "${environment[@]}" bash -c "$command" < /dev/null &
  inside=$!
  trap 'stop_inside; exit 130' INT
  trap 'stop_inside; exit 143' TERM
  wait "$inside" || status=$?
  trap - INT TERM
  return "$status"
}

# `unshare` blocks gentler signals. The first process in there dies with it, and all others with the first.
stop_inside() {
  kill -KILL "$inside" 2> /dev/null || true
  wait "$inside" 2> /dev/null || true
}
