//! What the packet filter of the kernel does for packets that this machine passes on: source addresses, and sizes of segments.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Marks packets that came from the device, until they leave by another one.
const FORWARDED: &str = "0x00040000";
/// The bits of a packet's mark that are ours.
const MASK: &str = "0x00ff0000";

/// A table of nftables, all of whose content is ours.
#[derive(Debug)]
pub(super) struct Firewall {
    device: String,
    present: bool,
}

impl Firewall {
    /// Removes what an earlier run left, which is all there is before [`Firewall::apply`].
    pub(super) fn new(device: &str) -> Self {
        let mut firewall = Self {
            device: device.to_owned(),
            present: true,
        };
        firewall.remove();
        firewall
    }

    /// Passes packets on, with this machine's own address as their source if `masquerade`.
    pub(super) fn apply(&mut self, masquerade: bool) -> io::Result<()> {
        nft(&ruleset(&self.device, masquerade))?;
        self.present = true;
        Ok(())
    }

    /// Removes everything.
    pub(super) fn remove(&mut self) {
        if self.present {
            // Without a table, or without nftables, there is nothing to remove.
            let _ = nft(&format!("delete table inet {}\n", table(&self.device)));
            self.present = false;
        }
    }
}

fn table(device: &str) -> String {
    let name = device
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    format!("tailwharf_{}", name.collect::<String>())
}

fn ruleset(device: &str, masquerade: bool) -> String {
    let table = table(device);
    let masquerade = if masquerade {
        format!(
            "  chain passed {{ type filter hook forward priority filter; \
             iifname \"{device}\" oifname != \"{device}\" meta mark set meta mark & 0xff00ffff | {FORWARDED}; }}\n  \
             chain source {{ type nat hook postrouting priority srcnat; policy accept; \
             meta mark & {MASK} == {FORWARDED} masquerade; }}\n"
        )
    } else {
        String::new()
    };
    format!(
        "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n  \
         chain sizes {{ type filter hook forward priority mangle; \
         iifname \"{device}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu; \
         oifname \"{device}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu; }}\n{masquerade}}}\n"
    )
}

fn nft(commands: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("the command nft (nftables): {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(commands.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("nft: {words}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_table_holds_all_and_replaces_itself() {
        let rules = ruleset("tail-0", true);
        assert!(rules.starts_with("add table inet tailwharf_tail_0\ndelete table inet tailwharf_tail_0\n"));
        assert!(rules.contains("masquerade"));
        assert!(!ruleset("tail-0", false).contains("masquerade"));
        assert!(ruleset("tail-0", false).contains("maxseg size set rt mtu"));
    }
}
