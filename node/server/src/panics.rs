//! What a panic does: it ends the whole process.
//!
//! A thread that has panicked is gone, and what it owned is half done: without the log thread nothing would ever
//! be written, while the node went on to look alive. So no panic is survived, whichever thread it strikes.

use std::any::Any;
use std::panic::PanicHookInfo;

use tracing::error;

/// From now on a panic on any thread logs one line and ends the process at once with this status.
pub fn end_the_process(exit_code: u8) {
    std::panic::set_hook(Box::new(move |panic| {
        report(panic, exit_code);
        std::process::exit(exit_code.into());
    }));
}

fn report(panic: &PanicHookInfo<'_>, exit_code: u8) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let reason = text_of(panic.payload());
    error!(thread, place, reason, exit_code, "a thread has panicked, nothing more is acknowledged");
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::config::{Log, LogFormat};

    const STATUS: u8 = 1;
    /// Set for the process that panics: this very test, run once more.
    const PANICS: &str = "TEST_OF_A_PANIC";

    #[test]
    fn a_panic_on_any_thread_ends_the_process_with_one_line() {
        if std::env::var_os(PANICS).is_some() {
            crate::logs::start(&Log { level: "info".to_owned(), format: LogFormat::Text });
            end_the_process(STATUS);
            let thread = std::thread::Builder::new().name("log".to_owned());
            let panicking = thread.spawn(|| panic!("half done")).unwrap();
            let _ = panicking.join();
            // Not reached: it would be a success.
            std::process::exit(0);
        }
        let name = "panics::tests::a_panic_on_any_thread_ends_the_process_with_one_line";
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(PANICS, "1")
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(STATUS.into()), "{log}");
        let lines: Vec<_> = log.lines().filter(|line| line.contains("a thread has panicked")).collect();
        assert_eq!(lines.len(), 1, "{log}");
        for word in ["log", "half done", "panics.rs"] {
            assert!(lines[0].contains(word), "{word}: {log}");
        }
    }
}
