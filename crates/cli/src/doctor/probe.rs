//! What the kernel allows: limits, mappings, io_uring, membarrier. Nothing here changes anything.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use stratalloc::units::{ByteSize, PAGE};

use super::Finding;

/// Every finding about the host.
pub(super) fn all() -> Vec<Finding> {
    vec![
        open_files(),
        address_space(),
        locked_memory(),
        mappings(),
        overcommit(),
        host_memory(),
        io_uring(),
        membarrier(),
    ]
}

/// NVIDIA's kernel driver, by what it leaves in /proc.
pub(super) fn kernel_driver() -> Finding {
    const WHAT: &str = "kernel driver";
    match fs::read_to_string("/proc/driver/nvidia/version") {
        Ok(text) => Finding::ok(WHAT, text.lines().next().unwrap_or_default().trim()),
        Err(_) => Finding::note(
            WHAT,
            "NVIDIA's is not loaded",
            "if this machine has a GPU, load it with `modprobe nvidia`; in a container, start that with its GPUs",
        ),
    }
}

/// A soft limit of this process, by its name in /proc/self/limits. `None` where there is no limit.
fn soft_limit(name: &str) -> Result<Option<u64>, String> {
    let limits = fs::read_to_string("/proc/self/limits").map_err(|error| error.to_string())?;
    parse_limit(&limits, name).ok_or_else(|| format!("/proc/self/limits does not tell of '{name}'"))
}

fn parse_limit(limits: &str, name: &str) -> Option<Option<u64>> {
    let soft = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
    if soft == "unlimited" { Some(None) } else { soft.parse().ok().map(Some) }
}

/// A number in a file of /proc.
fn number(path: &str) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    text.trim().parse().map_err(|_| format!("{path}: not a number"))
}

/// What cannot be found out is worth a note, no more.
fn or_unknown(what: &'static str, finding: Result<Finding, String>) -> Finding {
    finding.unwrap_or_else(|why| Finding::note(what, format!("unknown: {why}"), "this could not be checked"))
}

fn open_files() -> Finding {
    const WHAT: &str = "open files";
    const ENOUGH: u64 = 4096;
    or_unknown(
        WHAT,
        soft_limit("Max open files").map(|limit| match limit {
            Some(limit) if limit < ENOUGH => Finding::note(
                WHAT,
                format!("at most {limit}"),
                "each exported chunk takes one: sharing memory between processes may fail; raise it with `ulimit -n 65536`",
            ),
            Some(limit) => Finding::ok(WHAT, format!("at most {limit}")),
            None => Finding::ok(WHAT, "no limit"),
        }),
    )
}

fn address_space() -> Finding {
    const WHAT: &str = "address space";
    or_unknown(
        WHAT,
        soft_limit("Max address space").map(|limit| match limit {
            Some(limit) => Finding::note(
                WHAT,
                format!("at most {}", ByteSize(limit)),
                "several times a device's memory is reserved (not used) in addresses; lift it with `ulimit -v unlimited`",
            ),
            None => Finding::ok(WHAT, "no limit"),
        }),
    )
}

fn locked_memory() -> Finding {
    const WHAT: &str = "locked memory";
    const ENOUGH: u64 = 64 << 20;
    or_unknown(
        WHAT,
        soft_limit("Max locked memory").map(|limit| match limit {
            Some(limit) if limit < ENOUGH => Finding::note(
                WHAT,
                format!("at most {}", ByteSize(limit)),
                "io_uring cannot register its buffers, so transfers to disk copy once more; raise it with `ulimit -l unlimited`",
            ),
            Some(limit) => Finding::ok(WHAT, format!("at most {}", ByteSize(limit))),
            None => Finding::ok(WHAT, "no limit"),
        }),
    )
}

fn mappings() -> Finding {
    const WHAT: &str = "mappings";
    /// What a process maps besides.
    const OTHERS: u64 = 4096;
    or_unknown(
        WHAT,
        number("/proc/sys/vm/max_map_count").map(|most| {
            let found = format!("at most {most} (vm.max_map_count)");
            let device = most.saturating_sub(OTHERS).saturating_mul(PAGE);
            if device < ByteSize::gib(80).0 {
                let advice = format!(
                    "a software device with memory can map no more than {} in chunks of 2 MiB; a GPU, and replays, do not \
                     need it; raise it with `sysctl vm.max_map_count=1048576`",
                    ByteSize(device)
                );
                Finding::note(WHAT, found, advice)
            } else {
                Finding::ok(WHAT, found)
            }
        }),
    )
}

fn overcommit() -> Finding {
    const WHAT: &str = "overcommit";
    or_unknown(
        WHAT,
        number("/proc/sys/vm/overcommit_memory").map(|mode| match mode {
            0 => Finding::ok(WHAT, "heuristic (vm.overcommit_memory 0)"),
            1 => Finding::ok(WHAT, "always (vm.overcommit_memory 1)"),
            _ => Finding::note(
                WHAT,
                format!("strict (vm.overcommit_memory {mode})"),
                "a large software device may be refused, though it uses only what is touched; `sysctl vm.overcommit_memory=0`",
            ),
        }),
    )
}

fn host_memory() -> Finding {
    const WHAT: &str = "host memory";
    let kib = |text: &str, name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    let read = || {
        let text = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
        let memory = kib(&text, "MemAvailable:").zip(kib(&text, "MemTotal:"));
        let (available, total) = memory.ok_or_else(|| "/proc/meminfo does not tell".to_owned())?;
        Ok(Finding::ok(WHAT, format!("{} of {} available", ByteSize(available << 10), ByteSize(total << 10))))
    };
    or_unknown(WHAT, read())
}

/// Tries io_uring by making a ring of one entry and closing it again.
fn io_uring() -> Finding {
    const WHAT: &str = "io_uring";
    // `struct io_uring_params` is 120 bytes; some room more does no harm.
    let mut params = [0u64; 32];
    // SAFETY: the kernel writes at most the 120 bytes of its struct into `params`, which is 256 bytes long, aligned for it and
    // zeroed as required.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if ring >= 0 {
        // SAFETY: the system call has just returned this descriptor, and nothing else knows of it.
        drop(unsafe { OwnedFd::from_raw_fd(ring as i32) });
        return Finding::ok(WHAT, "available");
    }
    let error = io::Error::last_os_error();
    let disabled = number("/proc/sys/kernel/io_uring_disabled").unwrap_or(0);
    let (why, todo) = match (error.raw_os_error(), disabled) {
        (_, 1 | 2) => ("switched off (kernel.io_uring_disabled)", "`sysctl kernel.io_uring_disabled=0` allows it"),
        (Some(libc::EPERM), _) => ("forbidden, as by a container's seccomp profile", "allow io_uring_setup there"),
        (Some(libc::ENOSYS), _) => ("not in this kernel", "Linux 5.1 and later have it"),
        _ => ("not available", "all that the kernel says is above"),
    };
    Finding::note(
        WHAT,
        format!("{why}: {error}"),
        format!("the disk tier uses threads instead, with less throughput; {todo}"),
    )
}

/// Asks which membarrier commands there are.
fn membarrier() -> Finding {
    const WHAT: &str = "membarrier";
    const QUERY: i32 = 0;
    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`.
    const PRIVATE_EXPEDITED: i64 = 1 << 3;
    // SAFETY: this command takes no pointers and only returns a set of bits.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) };
    const LESS: &str = "every request takes a lock: slower, several times with many threads; nothing else changes";
    match commands {
        bits if bits >= 0 && bits & PRIVATE_EXPEDITED != 0 => Finding::ok(WHAT, "available (private expedited)"),
        bits if bits >= 0 => Finding::note(WHAT, "available, but not private expedited", LESS),
        _ => Finding::note(WHAT, format!("not available: {}", io::Error::last_os_error()), LESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max locked memory         8388608              8388608              bytes     \n\
                    Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(parse_limit(text, "Max locked memory"), Some(Some(8 << 20)));
        assert_eq!(parse_limit(text, "Max address space"), Some(None));
        assert_eq!(parse_limit(text, "Max open files"), None);
    }

    #[test]
    fn every_probe_answers() {
        for finding in all() {
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
    }
}
