"""Isolation backends: what stands between a guest and the machine.

    protocol.py   what the host asks of a backend
    gvisor.py     a user-space kernel (`runsc`), for machines with and without hardware virtualization
    bundle.py     the OCI bundle of a gVisor sandbox, as a value
    qemu.py       virtual machines with a kernel of their own
    qemu_command.py  the arguments of one, as a value
    qemu_probe.py one machine from boot to end; whether KVM works is found out so
    qmp.py        QEMU's monitor
    firecracker.py   the same guests on Firecracker; driven by `hutch debug firecracker` only, so far
    firecracker_*.py its parts, as its docstring names them
    console_log.py   what a machine says, kept up to a bound
    limits.py     the cgroup of a monitor
    kvm.py, tsc.py   what the processor can do
    mount_points.py  directories in a guest's files for what is mounted there

The host knows only `protocol`; backends differ only in here. There is no backend that shares the host's kernel with guests.
"""
