//! How much memory the program may count on.

use std::path::{Path, PathBuf};

use fs_err as fs;

/// The environment variable that limits memory is no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable `{MEMORY_VARIABLE}` is `{value}`, expected a number of bytes")]
pub struct MemoryLimitError {
    /// What it says.
    pub value: String,
}

/// Says how much memory may be counted on, in bytes, whatever the machine tells.
pub const MEMORY_VARIABLE: &str = "JANUS_MEMORY_LIMIT_BYTES";

/// Memory that may be taken from now on: [`MEMORY_VARIABLE`], else the least of what the machine can give without
/// swapping (`MemAvailable` of proc(5)) and what is left of each control group's limit. `None` where nobody tells.
///
/// # Errors
/// A limit that is no number.
pub fn available_bytes() -> Result<Option<u64>, MemoryLimitError> {
    if let Some(value) = std::env::var_os(MEMORY_VARIABLE).filter(|value| !value.is_empty()) {
        let value = value.to_string_lossy();
        let bytes = value.trim().parse().map_err(|_| MemoryLimitError { value: value.clone().into_owned() })?;
        return Ok(Some(bytes));
    }
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|told| told_bytes(&told, "MemAvailable:"));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(machine.into_iter().chain(of_groups(Path::new("/sys/fs/cgroup"), &groups)).min())
}

/// Bytes of the line of proc(5) that begins with `name` and tells kilobytes.
pub(crate) fn told_bytes(told: &str, name: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What is left of the least limit among the groups of this process (`/proc/self/cgroup` as cgroups(7) has it) and those
/// around them. Pages of files count as used there, those that nobody asked for lately can be taken back.
fn of_groups(root: &Path, groups: &str) -> Option<u64> {
    const SECOND: [&str; 3] = ["memory.max", "memory.current", "inactive_file"];
    const FIRST: [&str; 3] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
    let left = |folder: &Path, [limit, used, inactive]: [&str; 3]| {
        let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let (limit, used) = (number(limit)?, number(used)?);
        let told = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let inactive = told.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok());
        Some(limit.saturating_sub(used.saturating_sub(inactive.unwrap_or(0))))
    };
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, names): (PathBuf, _) = match controllers {
            "" => (root.to_path_buf(), SECOND),
            list if list.split(',').any(|controller| controller == "memory") => (root.join("memory"), FIRST),
            _ => continue,
        };
        let own = Path::new(path.trim_start_matches('/'));
        // Inside a container the path may be the host's: the folders above it are those that exist.
        for group in own.ancestors() {
            least = least.into_iter().chain(left(&root.join(group), names)).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells_kilobytes() {
        let available = |told| told_bytes(told, "MemAvailable:");
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    12 kB\n"), Some(12 << 10));
        assert_eq!(available("MemAvailable: x kB"), None);
        assert_eq!(available(""), None);
    }

    #[test]
    fn the_narrowest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: &str, files: [(&str, &str); 3]| {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
            for (name, text) in files {
                std::fs::write(root.path().join(path).join(name), text).unwrap();
            }
        };
        let files = |limit, used, stat| [("memory.max", limit), ("memory.current", used), ("memory.stat", stat)];
        group("a/b", files("max\n", "70\n", ""));
        assert_eq!(of_groups(root.path(), "0::/a/b\n"), None);
        group("a", files("1000\n", "700\n", "anon 5\ninactive_file 100\n"));
        assert_eq!(of_groups(root.path(), "0::/a/b\n"), Some(400));
        group("a/b", files("500\n", "300\n", ""));
        assert_eq!(of_groups(root.path(), "0::/a/b\n"), Some(200));
        assert_eq!(of_groups(root.path(), "0::/elsewhere\n"), None);
        let first = [("memory.limit_in_bytes", "90"), ("memory.usage_in_bytes", "95"), ("memory.stat", "")];
        group("memory/c", first);
        assert_eq!(of_groups(root.path(), "3:cpu:/c\n2:memory,x:/c\n"), Some(0));
        assert_eq!(of_groups(root.path(), "nonsense"), None);
    }
}
