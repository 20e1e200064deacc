#!/usr/bin/env bash
# Mount a node's own NVMe disks as one file system at /mnt/local, for what is cached on the node: models, token shards,
# checkpoints on their way to the bucket. Does nothing on a node without such disks, and nothing the second time.
set -euo pipefail
target=${1:-/mnt/local}
mountpoint -q "$target" && exit 0

# By model: disks that go with the node on Amazon, and on Google (whose persistent ones are called nvme_card-pd).
mapfile -t disks < <(lsblk -dnpo NAME,MODEL | awk '/Amazon EC2 NVMe Instance Storage|nvme_card *$/ {print $1}')
[ ${#disks[@]} -eq 0 ] && { echo "this node has no NVMe disk of its own: the root volume is its cache"; exit 0; }

sudo mkdir -p "$target"
mounted=$(lsblk -nro MOUNTPOINT "${disks[@]}" | grep -m1 . || true)
if [ -n "$mounted" ]; then  # by the image, as Amazon's deep-learning images do
  sudo mount --bind "$mounted" "$target"
else
  device=${disks[0]}
  if [ ${#disks[@]} -gt 1 ]; then
    device=/dev/md/local
    command -v mdadm >/dev/null || sudo apt-get install -y -qq mdadm
    sudo mdadm --create "$device" --run --force --level=0 --raid-devices=${#disks[@]} "${disks[@]}"
  fi
  sudo mkfs.ext4 -q -F -m 0 -E nodiscard "$device"
  sudo mount -o noatime "$device" "$target"
fi
sudo chmod 1777 "$target"
