//! What the machine has: this process's memory, and how much more it may take. Known on Linux; elsewhere nothing is.

use std::fs;
use std::path::{Path, PathBuf};

/// This process's resident set in bytes; 0 where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Now.
    pub now: usize,
    /// The most so far.
    pub most: usize,
}

/// What the process holds, and held.
pub fn resident() -> Resident {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| size(&status, name).unwrap_or(0);
    Resident { now: of("VmRSS:"), most: of("VmHWM:") }
}

/// The process's peak resident set in bytes, where the system tells it (Linux).
pub fn peak_rss() -> Option<u64> {
    size(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:").map(|n| n as u64)
}

/// Addresses that are yet to be mapped and hardly touched: by the allocator for threads that start with the run, and their stacks.
const UNTOUCHED: usize = 256 << 20;

/// How much memory a process can have, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of this process, those that it has already included.
    pub bytes: usize,
    /// Where the limit comes from.
    pub by: &'static str,
}

/// The most memory that this process can have: what it has, and the least room that `MemAvailable` (memory that programs can get without
/// swapping), the limits of its control groups and the limit of its address space leave. `None` where the system does not tell (all but
/// Linux).
pub fn limit() -> Option<Limit> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident = size(&status, "VmRSS:")?;
    let read = |path: &str| fs::read_to_string(path).ok();
    let available = read("/proc/meminfo").and_then(|text| size(&text, "MemAvailable:"));
    let groups = read("/proc/self/cgroup").and_then(|text| group_room(Path::new("/sys/fs/cgroup"), &text));
    let addresses = read("/proc/self/limits").and_then(|text| address_space(&text));
    // a mapping counts whether it is touched or not
    let mapped = size(&status, "VmSize:").map(|mapped| mapped.saturating_add(UNTOUCHED));
    let addresses = addresses.zip(mapped).map(|(limit, mapped)| limit.saturating_sub(mapped));
    let rooms = [
        ("MemAvailable of /proc/meminfo", available),
        ("the memory limit of its control group", groups),
        ("the limit of its address space, ulimit -v", addresses),
    ];
    let (by, room) = rooms.into_iter().filter_map(|(by, room)| Some((by, room?))).min_by_key(|&(_, room)| room)?;
    Some(Limit { bytes: resident.saturating_add(room), by })
}

/// A size of a file in /proc: `NAME 123 kB`, in bytes.
fn size(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// The soft limit of `/proc/self/limits` on the address space; `None` if there is none.
fn address_space(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The least room that the memory limits of a process's control groups and of those around them leave. `groups` is
/// `/proc/self/cgroup`; `mount` is where version 2 is mounted, and version 1 by controller. Files of the disk that can be dropped do not
/// count as used.
fn group_room(mount: &Path, groups: &str) -> Option<usize> {
    let of_line = |line: &str| -> Vec<usize> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
        let path = Path::new(path.trim_start_matches('/'));
        let within = |root: PathBuf, files: [&str; 3]| -> Vec<usize> {
            // in a container the path may be that outside, and the limit stands at the root
            path.ancestors().filter_map(|group| room_in(&root.join(group), files)).collect()
        };
        if controllers.is_empty() {
            within(mount.to_owned(), ["memory.max", "memory.current", "inactive_file "])
        } else if controllers.split(',').any(|c| c == "memory") {
            let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];
            within(mount.join("memory"), files)
        } else {
            Vec::new()
        }
    };
    groups.lines().flat_map(of_line).min()
}

/// What is left of one group's limit; `files` are the names of the limit, of what is used, and of the line of `memory.stat` with
/// what of it can be dropped.
fn room_in(group: &Path, [limit, used, droppable]: [&str; 3]) -> Option<usize> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let limit: usize = read(limit)?.trim().parse().ok()?;
    let used: usize = read(used)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let droppable = stat.lines().find_map(|line| line.strip_prefix(droppable)?.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(droppable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_limits_of_proc() {
        let status = "Name:\tcolrow\nVmPeak:\t  900 kB\nVmHWM:\t   800 kB\nVmRSS:\t   700 kB\n";
        assert_eq!((size(status, "VmRSS:"), size(status, "VmHWM:")), (Some(700 << 10), Some(800 << 10)));
        assert_eq!((size(status, "VmSize:"), size("VmRSS: 7 pages\n", "VmRSS:")), (None, None));
        let limits = |soft: &str| {
            format!("Limit   Soft Limit   Hard Limit   Units\nMax address space   {soft}   unlimited   bytes\n")
        };
        assert_eq!(address_space(&limits("4096")), Some(4096));
        assert_eq!((address_space(&limits("unlimited")), address_space("")), (None, None));
    }

    #[test]
    fn the_tightest_of_the_control_groups_decides() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path();
        let write = |group: &str, files: [(&str, &str); 3]| {
            fs::create_dir_all(mount.join(group)).unwrap();
            files.iter().for_each(|(name, text)| fs::write(mount.join(group).join(name), text).unwrap());
        };
        let v2 = |max, current, stat| [("memory.max", max), ("memory.current", current), ("memory.stat", stat)];
        write("a/b", v2("max\n", "10\n", "anon 10\n"));
        write("a", v2("1000\n", "400\n", "anon 100\ninactive_file 300\nactive_file 0\n"));
        assert_eq!(group_room(mount, "0::/a/b\n"), Some(900));
        assert_eq!(group_room(mount, "0::/a/b/not/there\n"), Some(900));
        assert_eq!(group_room(mount, "0::/\n3:cpu:/a\nbad\n"), None);
        let v1 = |limit, used| [("memory.limit_in_bytes", limit), ("memory.usage_in_bytes", used), ("memory.stat", "")];
        write("memory/c", v1("9223372036854771712\n", "5\n"));
        write("memory", v1("700\n", "800\n"));
        assert_eq!(group_room(mount, "4:cpu,memory:/c\n0::/a\n"), Some(0), "more than the limit is in use");
        assert_eq!(group_room(&mount.join("memory"), "4:memory:/c\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory_and_a_limit() {
        let Resident { now, most } = resident();
        assert!(0 < now && now <= most && most as u64 <= peak_rss().unwrap());
        assert!(limit().unwrap().bytes > now);
    }
}
