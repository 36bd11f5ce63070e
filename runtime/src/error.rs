//! Errors of the runtime: a code, what happened, what to do.

use std::fmt;

/// Whose fault an error is: decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The input or the file: exit code 2.
    Input,
    /// Something failed while running: exit code 1.
    Run,
}

/// A coded error.
#[derive(Clone, Debug)]
pub struct Error {
    /// Stable code, `K` and four digits.
    pub code: &'static str,
    /// What happened, and where.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Whose fault it is.
    pub fault: Fault,
}

impl Error {
    /// The file or the input is at fault.
    pub fn input(code: &'static str, message: impl Into<String>) -> Error {
        Error {
            code,
            message: message.into(),
            help: None,
            fault: Fault::Input,
        }
    }

    /// It failed while running.
    pub fn run(code: &'static str, message: impl Into<String>) -> Error {
        Error {
            code,
            message: message.into(),
            help: None,
            fault: Fault::Run,
        }
    }

    /// With advice.
    pub fn help(mut self, help: impl Into<String>) -> Error {
        self.help = Some(help.into());
        self
    }

    /// 2 if the input is at fault, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self.fault {
            Fault::Input => 2,
            Fault::Run => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The runtime's result.
pub type Result<T> = std::result::Result<T, Error>;
