//! What the agent answers when it cannot do something.
//!
//! ```text
//! 400 bad_request                    the request itself
//! 400 executable_not_found           no such program
//! 400 file_error, no_space           the caller can mend it
//! 400 command_stdin_unavailable      started without standard input, or it is closed
//! 400 invalid_archive
//! 404 not_found                      no such file
//! 404 command_not_found_or_exited
//! 404 command_not_found              to attach to
//! 409 command_exists                 a second start with the same id
//! 500 agent_error                    the guest's kernel refused what should work
//! 503 resource_exhausted             the guest has no processes, descriptors or memory left
//! ```

use hutch_wire::ErrorMessage;
use rustix::io::Errno;

/// The text of `strerror`.
pub(crate) fn text(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

pub(crate) fn bad_request(message: impl Into<String>) -> ErrorMessage {
    ErrorMessage::new(400, "bad_request", message)
}

pub(crate) fn invalid_archive(message: impl Into<String>) -> ErrorMessage {
    ErrorMessage::new(400, "invalid_archive", message)
}

pub(crate) fn not_running(id: &str) -> ErrorMessage {
    let message = format!("The command {id} was not found or has exited.");
    ErrorMessage::new(404, "command_not_found_or_exited", message)
}

pub(crate) fn no_stdin() -> ErrorMessage {
    let message = "The command has no standard input, or it is closed.";
    ErrorMessage::new(400, "command_stdin_unavailable", message)
}

/// The error of something that is not about files.
pub(crate) fn system_failure(doing: &str, error: Errno) -> ErrorMessage {
    let message = format!("{doing}: {}", text(error));
    if is_exhaustion(error) {
        return ErrorMessage::new(503, "resource_exhausted", message);
    }
    ErrorMessage::new(500, "agent_error", message)
}

/// What a file method was doing: a missing path is "not found" to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The error of a file method. `subject` (with ": " after it) goes before the text of `strerror`; it may be empty.
pub(crate) fn file_failure(error: Errno, access: Access, subject: &str) -> ErrorMessage {
    let message = format!("{subject}{}", text(error));
    let (status, code) = match error {
        Errno::NOENT => (404, "not_found"),
        Errno::NOTDIR if access == Access::Read => (404, "not_found"),
        Errno::NOSPC | Errno::DQUOT => (400, "no_space"),
        Errno::IO => (500, "agent_error"),
        error if is_exhaustion(error) => (503, "resource_exhausted"),
        _ => (400, "file_error"),
    };
    ErrorMessage::new(status, code, message)
}

fn is_exhaustion(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN)
}
