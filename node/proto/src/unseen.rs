//! Whether a call that failed was surely not applied by the node, since none of it was looked at: such a one may be sent
//! again, also if it writes.

use std::error::Error;

use h2::Reason;
use tonic::Status;

/// True of a stream that the other side has refused, and of one that is not among those that it still works on as it goes
/// away (RFC 9113, 8.7 and 6.8). Of any other failure nothing can be said.
pub fn is_unseen(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    let is_left = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    error.is_remote() && (is_refused || is_left)
}

/// The same of a call through a generated client and tonic's channel, which takes requests up that find the connection
/// closing. Other gRPC libraries send these again by themselves.
pub fn was_unseen(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.downcast_ref::<h2::Error>().is_some_and(is_unseen)
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is unseen is shown where connections end: in the client's and the node's tests.
    #[test]
    fn of_other_failures_nothing_is_said() {
        let io = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        for status in [
            Status::unavailable("this node is about to stop"),
            Status::cancelled("by whom?"),
            Status::from_error(Box::new(io)),
            // Of our own side.
            Status::from_error(Box::new(h2::Error::from(Reason::REFUSED_STREAM))),
            Status::from_error(Box::new(h2::Error::from(Reason::NO_ERROR))),
        ] {
            assert!(!was_unseen(&status), "{status:?}");
        }
    }
}
