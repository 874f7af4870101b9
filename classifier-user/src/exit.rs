//! Exit codes, and errors that know theirs.

use std::fmt;

/// Exit code of a failed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Anything not listed below.
    Failed = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The configuration cannot be read or used.
    Config = 3,
    /// The list cannot be read or used.
    List = 4,
    /// Not enough privileges.
    Permission = 5,
    /// No controller answers on the control socket.
    NotRunning = 6,
    /// An interface, gateway, kernel feature, or place for files or sockets is missing.
    System = 7,
    /// Another controller is in the way.
    Busy = 8,
    /// Something needs an operator's attention.
    Attention = 9,
    /// The list was refused.
    Refused = 10,
    /// The list's source cannot be reached or does not answer as it should.
    Unreachable = 11,
}

impl Code {
    /// The code with this number; an unknown one is a plain failure.
    pub fn from_number(number: u8) -> Self {
        match number {
            2 => Code::Usage,
            3 => Code::Config,
            4 => Code::List,
            5 => Code::Permission,
            6 => Code::NotRunning,
            7 => Code::System,
            8 => Code::Busy,
            9 => Code::Attention,
            10 => Code::Refused,
            11 => Code::Unreachable,
            _ => Code::Failed,
        }
    }

    /// All codes with what they mean, for the manual and `--help`.
    pub const MEANINGS: &'static [(u8, &'static str)] = &[
        (0, "success"),
        (1, "failure not listed below"),
        (2, "wrong command line"),
        (3, "the configuration cannot be read or used"),
        (4, "the list cannot be read or used"),
        (5, "not enough privileges"),
        (6, "no controller answers on the control socket"),
        (
            7,
            "an interface, gateway, kernel feature, or place for files or sockets is missing",
        ),
        (8, "another controller is in the way"),
        (
            9,
            "something needs an operator's attention (status --check, doctor)",
        ),
        (10, "the list was refused"),
        (
            11,
            "the list's source cannot be reached or does not answer as it should",
        ),
    ];
}

/// An error with its exit code. It prints as the error alone.
#[derive(Debug)]
pub struct Coded {
    /// The code.
    pub code: Code,
    error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Coded {}

/// Gives the error of a result an exit code.
pub trait WithCode<T> {
    /// Gives the error this code, unless it has one already.
    ///
    /// # Errors
    ///
    /// The same error.
    fn code(self, code: Code) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithCode<T> for Result<T, E> {
    fn code(self, code: Code) -> anyhow::Result<T> {
        self.map_err(|error| coded(error.into(), code))
    }
}

/// The error with this code, unless it has one already.
pub fn coded(error: anyhow::Error, code: Code) -> anyhow::Error {
    if error.downcast_ref::<Coded>().is_some() {
        return error;
    }
    Coded { code, error }.into()
}

/// The exit code of an error.
pub fn code_of(error: &anyhow::Error) -> Code {
    error
        .downcast_ref::<Coded>()
        .map_or(Code::Failed, |coded| coded.code)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn the_innermost_code_holds_and_the_message_stays_whole() {
        let inner: anyhow::Result<()> = Err(anyhow!("no such file")).context("cannot read x");
        let outer = inner
            .code(Code::List)
            .context("cannot start")
            .code(Code::Failed);
        let error = outer.unwrap_err();
        assert_eq!(code_of(&error), Code::List);
        assert_eq!(
            format!("{error:#}"),
            "cannot start: cannot read x: no such file"
        );
    }

    #[test]
    fn every_code_has_a_meaning() {
        assert_eq!(Code::MEANINGS.len(), Code::Unreachable as usize + 1);
    }
}
