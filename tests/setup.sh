#!/usr/bin/env bash
# Installs what the tests need on Debian 12 or later, where Rust is there already. Does nothing the second time.
set -euo pipefail

packages=(
  ca-certificates g++                      # the compiler of C parts of crates, of libFuzzer
  e2fsprogs xfsprogs dosfstools mtools     # judges of filesystems: e2fsck, xfs_repair, fsck.vfat
  fdisk gdisk mount util-linux             # sfdisk, sgdisk, mount, losetup, blkid, setpriv
  attr acl libcap2-bin                     # getfattr, getfacl, getcap
  fuse3                                    # fusermount3: mounts for users
  tar libarchive-tools xz-utils zstd bzip2 # who else reads what tar-out writes
  pigz pbzip2 lbzip2                       # pack in pieces what racker reads in place
  7zip                                     # reads VHD, VHDX and VDI, differences of the first two included
  libvhdi-utils                            # vhdiinfo: reads what VHDX images say of themselves
  tree                                     # folders as others show them
  patch                                    # applies what a dry run prints
  selinux-utils                            # matchpathcon: the labels of new files
  procps                                   # kill: interrupts a conversion
  strace                                   # whether a copy waits for the disk
  libnbd-bin python3-libnbd                # nbdinfo, nbdcopy and libnbd itself: clients of the server
  nbdkit nbd-server                        # servers for the client, and such as misbehave as they are told
  openssl gnutls-bin                       # certificates and keys (psktool) for TLS
  ostree python3
)
# A qemu-img that is there is left alone, whatever release it is of.
command -v qemu-img >/dev/null && command -v qemu-io >/dev/null || packages+=(qemu-utils)

missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: these packages are missing, and only root can install them: ${missing[*]}" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Where no udev has seen to it, the device is root's alone. Everybody may use it elsewhere.
if [ -c /dev/fuse ] && [ "$(id -u)" = 0 ]; then
  chmod 0666 /dev/fuse
fi

for c in clippy rustfmt; do
  cargo "${c/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add $c
done
for tool in cargo-deny cargo-fuzz; do
  command -v $tool >/dev/null || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/$tool" ] || cargo install --locked $tool
done
