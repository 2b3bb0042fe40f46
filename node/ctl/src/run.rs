//! From the command line to an exit status.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use keystore_client::WriteOptions;
use tracing_subscriber::EnvFilter;

use crate::args::{Arguments, Command, Output};
use crate::data::Put;
use crate::failure::{Exit, Failure};
use crate::{bench, data, init, layout, overview, recover};

pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    // Silent unless RUST_LOG asks for more.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let output = arguments.globals.output;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(output, &Failure::local("cannot start a runtime", &error)),
    };
    let result = runtime.block_on(run(arguments));
    // A name that is still being looked up holds a thread which nobody can interrupt.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(output, &failure),
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { globals, command } = arguments;
    match command {
        Command::Get { key } => data::get(&globals, key).await,
        Command::Put { key, value, ttl, write } => {
            let options = WriteOptions { ttl, ..write.into() };
            data::put(&globals, Put { key, value, options }).await
        }
        Command::Delete { key, write } => data::delete(&globals, key, write).await,
        Command::Scan(args) => data::scan(&globals, args).await,
        Command::Status => overview::status(&globals).await,
        Command::Ring => overview::ring(&globals).await,
        Command::Nodes => overview::nodes(&globals).await,
        Command::Init(args) => init::init(&globals, &args).await,
        Command::Layout(command) => layout::layout(&globals, command).await,
        Command::Recover(args) => recover::recover(&globals, &args).await,
        Command::Bench(args) => bench::bench(&globals, &args).await,
    }
}

fn report(output: Output, failure: &Failure) -> ExitCode {
    failure.print(output);
    failure.exit.into()
}

/// Help and version are answers; what cannot be parsed is told in the form that was asked for, as far as can be seen.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to be told that stdout is closed.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ if wants_json() => {
            let text = error.to_string();
            let message = text.trim_start_matches("error: ").lines().next().unwrap_or_default();
            report(Output::Json, &Failure::usage(message))
        }
        _ => {
            let _ = error.print();
            Exit::Usage.into()
        }
    }
}

fn wants_json() -> bool {
    let arguments: Vec<_> = std::env::args_os().collect();
    let pair = |pair: &[std::ffi::OsString]| match pair {
        [flag, value] => (flag == "-o" || flag == "--output") && value == "json",
        _ => false,
    };
    arguments.windows(2).any(pair)
        || arguments.iter().any(|argument| argument == "-ojson" || argument == "--output=json")
        || std::env::var_os("KEYSTORE_OUTPUT").is_some_and(|output| output == "json")
}
