//! The sources of settings: file, environment, flags. Each yields what was given, with where it was given.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Config;
use super::settings::{SETTINGS, find, is_section};
use super::yaml::{Raw, leaves};

/// Unlike flags and files, variables may be anybody's: Kubernetes sets `KEYSTORE_PORT` and the like for a Service
/// of that name. So a variable is ours only if it is a setting's or has the double underscore of a section.
const VARIABLE_PREFIX: &str = "KEYSTORE_";

/// A value for a path that may or may not be a setting's.
pub(super) struct Given {
    path: String,
    origin: String,
    raw: Raw,
}

impl Given {
    pub(super) fn apply(self, config: &mut Config, problems: &mut Vec<String>) {
        let Self { path, origin, raw } = self;
        match find(&path) {
            Some(setting) => {
                if let Err(error) = (setting.set)(config, raw) {
                    problems.push(format!("{origin}: {error} (a value of {path} is: {})", setting.unit));
                }
            }
            None if is_section(&path) && matches!(&raw, Raw::Yaml(value) if value.is_null()) => {}
            None => problems.push(format!("{origin}: there is no setting of this name")),
        }
    }
}

/// The file's leaves. A file that cannot be read is one problem.
pub(super) fn read_file(path: &Path, given: &mut Vec<Given>, problems: &mut Vec<String>) {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return problems.push(format!("{shown}: {error}")),
    };
    read_text(&shown.to_string(), &text, given, problems);
}

/// A file's text; `shown` is what problems call it.
pub(super) fn read_text(shown: &str, text: &str, given: &mut Vec<Given>, problems: &mut Vec<String>) {
    match leaves(text, |path| find(path).is_some()) {
        Ok(found) => given.extend(found.into_iter().map(|(path, raw)| Given {
            origin: format!("{shown}: {path}"),
            path,
            raw,
        })),
        Err(error) => problems.push(format!("{shown}: {error}")),
    }
}

pub(super) fn read_environment(
    environment: impl Iterator<Item = (OsString, OsString)>,
    given: &mut Vec<Given>,
) {
    for (name, value) in environment {
        let (Some(name), value) = (name.to_str(), value.to_string_lossy()) else {
            continue;
        };
        let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else {
            continue;
        };
        let path = rest.replace("__", ".").to_lowercase();
        if rest.contains("__") || find(&path).is_some() {
            given.push(Given { path, origin: name.to_owned(), raw: Raw::Text(value.into_owned()) });
        }
    }
}

/// What the command line says.
#[derive(Default)]
pub(super) struct Flags {
    pub(super) help: bool,
    pub(super) version: bool,
    pub(super) config: Option<PathBuf>,
    pub(super) given: Vec<Given>,
}

/// `--name value` or `--name=value`.
pub(super) fn read_flags(arguments: impl Iterator<Item = OsString>, problems: &mut Vec<String>) -> Flags {
    let mut flags = Flags::default();
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else {
            problems.push(format!("\"{argument}\": this program takes flags only (see --help)"));
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "help" => flags.help = true,
            "version" => flags.version = true,
            _ if name != "config" && !SETTINGS.iter().any(|setting| setting.path == name) => {
                problems.push(format!("--{name}: there is no setting of this name"));
                // The word after it is most likely its value, and no second problem.
                if value.is_none() {
                    arguments.next();
                }
            }
            _ => match value.or_else(|| arguments.next()) {
                None => problems.push(format!("--{name}: a value is missing")),
                Some(value) if name == "config" => flags.config = Some(value.into()),
                Some(value) => flags.given.push(Given {
                    path: name.to_owned(),
                    origin: format!("--{name}"),
                    raw: Raw::Text(value),
                }),
            },
        }
    }
    flags
}
