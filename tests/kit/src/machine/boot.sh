#!/bin/sh
# Boots systemd as the first process of namespaces of its own, over a copy-on-write view of a root
# file system:
#
#     boot.sh FOLDER [ROOT]
#
# FOLDER is empty, and becomes the mount point of the new root; ROOT is `/` by default. Nothing reaches
# the host: all mounts are in a private namespace and vanish with it. SIGKILL to this process ends the
# machine.
set -eu

case $1 in
--in-cgroup)
	# Each machine has a cgroup of its own, because the names in it are the same for all machines. When
	# a machine is killed, nobody is left to remove its cgroup, so each machine removes those of earlier
	# ones.
	folder=$2 root=$3
	mount -t cgroup2 cgroup2 "$folder"
	for old in "$folder"/machine-*; do
		# Another machine may remove the same cgroup at the same time; that is no reason to fail.
		if [ -d "$old" ] && grep -q '^populated 0' "$old/cgroup.events"; then
			find "$old" -depth -type d -exec rmdir {} + 2>/dev/null || true
		fi
	done
	own=$(mktemp -d "$folder/machine-XXXXXXXX")
	# As long as the cgroup is empty, another machine that boots now may remove it.
	until echo $$ 2>/dev/null >"$own/cgroup.procs"; do mkdir -p "$own"; done
	chmod 755 "$own"
	umount "$folder"
	exec unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child sh "$0" --as-init "$folder" "$root"
	;;
--as-init)
	folder=$2 lower=$3
	mount --make-rprivate /
	mount -t tmpfs -o mode=755 tmpfs "$folder"
	mkdir "$folder/upper" "$folder/work" "$folder/root"
	mount -t overlay overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
	cd "$folder/root"
	mkdir -p proc sys dev run tmp
	mount -t proc proc proc
	# The settings of the kernel belong to the host; only those of the network are in the namespace.
	mount --bind proc/sys proc/sys
	mount --bind proc/sys/net proc/sys/net
	mount -o remount,bind,ro proc/sys
	mount -t sysfs -o ro sysfs sys
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	mount -t tmpfs -o mode=755 tmpfs run
	mount -t tmpfs -o mode=1777 tmpfs tmp
	mount -t tmpfs -o mode=755 tmpfs dev
	for node in null zero full random urandom tty; do
		: >"dev/$node"
		mount --bind "/dev/$node" "dev/$node"
	done
	mkdir dev/pts dev/shm
	mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
	mount -t tmpfs -o mode=1777 tmpfs dev/shm
	ln -s pts/ptmx dev/ptmx
	ln -s /proc/self/fd dev/fd
	: >etc/machine-id
	: >etc/fstab
	echo machine >etc/hostname
	# Units that the root file system has enabled are not started, nor those that need a real machine.
	rm -rf etc/systemd/system
	mkdir -p etc/systemd/system-generators
	for generator in usr/lib/systemd/system-generators/*; do
		[ "${generator##*/}" = smoothserve-generator ] || ln -s /dev/null "etc/systemd/system-generators/${generator##*/}"
	done
	mkdir -p etc/systemd/system/sockets.target.wants etc/systemd/journald.conf.d
	for unit in getty.target console-getty.service systemd-udevd.service systemd-udev-trigger.service \
		systemd-resolved.service systemd-networkd.service systemd-timesyncd.service systemd-firstboot.service \
		systemd-binfmt.service systemd-update-utmp.service systemd-modules-load.service systemd-sysctl.service \
		modprobe@.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount dev-hugepages.mount; do
		ln -sf /dev/null "etc/systemd/system/$unit"
	done
	printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\nAudit=no\n' >etc/systemd/journald.conf.d/machine.conf
	ln -sf /lib/systemd/system/dbus.socket etc/systemd/system/sockets.target.wants/dbus.socket
	mkdir -p .outside
	pivot_root . .outside
	exec env -i container=machine PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c \
		'umount -l /.outside && exec /lib/systemd/systemd --unit=multi-user.target'
	;;
*)
	exec unshare --mount --propagation private sh "$0" --in-cgroup "$1" "${2:-/}"
	;;
esac
