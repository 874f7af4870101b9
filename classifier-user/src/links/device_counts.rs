//! Counters of the interfaces of this network namespace. Read from the proc file system, which waits for nobody who changes
//! interfaces.

use std::fs;
use std::io;

/// The counts of all interfaces at one time.
pub struct DeviceCounts(String);

impl DeviceCounts {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// When there is no proc file system.
    pub fn read() -> io::Result<Self> {
        fs::read_to_string("/proc/thread-self/net/dev").map(DeviceCounts)
    }

    /// Returns how many packets an interface has received.
    pub fn received_packets(&self, interface: &str) -> Option<u64> {
        self.number(interface, 1)
    }

    /// Returns how many bytes it has sent.
    pub fn sent_bytes(&self, interface: &str) -> Option<u64> {
        self.number(interface, 8)
    }

    /// One of the numbers in the order of proc_pid_net(5).
    fn number(&self, interface: &str, at: usize) -> Option<u64> {
        let lines = self.0.lines();
        let mut lines = lines.filter_map(|line| line.trim().split_once(':'));
        let (_, numbers) = lines.find(|(name, _)| *name == interface)?;
        numbers.split_whitespace().nth(at)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_an_interface_are_read() {
        let counts = DeviceCounts(
            "Inter-|   Receive  |  Transmit\n face |bytes packets\n\
             \x20 inet: 1 2 3 4 5 6 7 8 900 10 11 12 13 14 15 16\n    lo:1 0 0 0 0 0 0 0 7 0\n"
                .to_owned(),
        );
        assert_eq!(counts.sent_bytes("inet"), Some(900));
        assert_eq!(counts.received_packets("inet"), Some(2));
        assert_eq!(counts.sent_bytes("lo"), Some(7));
        assert_eq!(counts.sent_bytes("wan"), None);
    }
}
