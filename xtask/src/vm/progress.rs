//! How far a machine's tests are, by what it prints, for when it ends in the middle.

/// The tests of one boot.
#[derive(Default)]
pub(super) struct Progress {
    /// The test that began last.
    pub(super) running: Option<String>,
    /// The test that ended last.
    pub(super) ended: Option<String>,
    pub(super) passed: usize,
    pub(super) failed: Vec<String>,
    /// What the kernel said when it gave up.
    pub(super) panic: Option<String>,
}

impl Progress {
    /// Takes a line in: `test NAME ... ok`, which other lines may part in the middle.
    pub(super) fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test ")
            && !rest.starts_with("result: ")
        {
            self.running = rest.split_whitespace().next().map(str::to_owned);
        }
        if let Some((_, why)) = line.split_once("Kernel panic - not syncing: ") {
            self.panic = Some(why.to_owned());
        }
        let Some(running) = &self.running else {
            return;
        };
        match line.split_whitespace().next_back() {
            Some("ok") => self.passed += 1,
            Some("FAILED") => self.failed.push(running.clone()),
            Some("ignored") => (),
            _ => return,
        }
        self.ended = self.running.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_ends_in_the_middle_has_a_last_test() {
        let mut progress = Progress::default();
        for line in [
            "running 5 tests",
            "test one   ... ok",
            "test two   ... 10 switches",
            "two took 17 s",
            "ok",
            "test three ... ignored",
            "test four  ... FAILED",
            "all is ok",
            "test five  ... [ 2417.728832] rcu: INFO",
            "[ 2475.0] Kernel panic - not syncing: softlockup: hung tasks",
        ] {
            progress.take(line);
        }
        assert_eq!(progress.passed, 2);
        assert_eq!(progress.failed, ["four"]);
        assert_eq!(progress.ended.as_deref(), Some("four"));
        assert_eq!(progress.running.as_deref(), Some("five"));
        assert_eq!(progress.panic.as_deref(), Some("softlockup: hung tasks"));
    }
}
