//! Programs that run beside a test.

use std::process::Child;

/// A program that is ended with its handle.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
