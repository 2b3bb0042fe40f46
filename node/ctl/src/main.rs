//! `keystorectl`, also installed as `kubectl-keystore`: the store at the command line.
//!
//! Results go to stdout, messages to stderr, and the exit status says what became of the request. Modules in
//! reading order; each uses only those before it.

mod failure;
mod args;
mod output;
mod live;
mod forward;
mod reach;
mod data;
mod survey;
mod transfer;
mod overview;
mod init;
mod layout;
mod recover;
mod bench;
mod run;

fn main() -> std::process::ExitCode {
    run::main()
}
