//! Configuration from every source: what is read, what wins, and that every problem is named at once.

use std::io::Write as _;

use super::settings::SETTINGS;
use super::*;

fn load_from(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Command, ConfigError> {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(file.as_bytes()).unwrap();
    let path = config.path().to_str().unwrap().to_owned();
    let arguments = ["--config".to_owned(), path.clone()].into_iter();
    let arguments = arguments.chain(flags.iter().map(|flag| (*flag).to_owned()));
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    load(arguments.map(OsString::from), environment).map_err(|mut error| {
        for problem in &mut error.problems {
            *problem = problem.replace(&path, "FILE");
        }
        error
    })
}

fn config_from(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Config {
    match load_from(file, environment, flags) {
        Ok(Command::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn later_sources_win() {
    let file = "storage:\n  cache_bytes: 2000000\n  durability: periodic\nnode: {name: from-file}\n";
    let config = config_from(
        file,
        &[("KEYSTORE_STORAGE__CACHE_BYTES", "3000000"), ("KEYSTORE_NODE__NAME", "007")],
        &["--storage.cache_bytes=4000000", "--gossip.seeds", "a:1, b:2"],
    );
    assert_eq!(config.storage.cache_bytes, 4_000_000);
    assert_eq!(config.storage.durability, Durability::Periodic);
    assert_eq!(config.node.name, "007", "a text stays a text");
    assert_eq!(config.gossip.seeds, ["a:1", "b:2"]);
    assert_eq!(config.listen, Config::default().listen);
}

#[test]
fn every_problem_is_reported_at_once() {
    let file = "storage: {engine: sled, enigne: sled}\nlimits:\n  requests: many\nnonsense: 1\ngossip:\n";
    let error = load_from(
        file,
        &[("KEYSTORE_LOG__COLOUR", "red"), ("KEYSTORE_STORAGE__HARD_LIMIT_PERCENT", "101")],
        &["--storage.size", "1", "--log.format", "xml", "stray"],
    )
    .unwrap_err();
    let expected = [
        "--storage.size: there is no setting",
        "\"stray\": this program takes flags only",
        "FILE: storage.enigne: there is no setting",
        "FILE: limits.requests: invalid type: string \"many\"",
        "FILE: nonsense: there is no setting",
        "KEYSTORE_LOG__COLOUR: there is no setting",
        "--log.format: unknown variant `xml`",
        "storage.hard_limit_percent: it has to be from 1 to 100",
    ];
    assert_eq!(error.problems.len(), expected.len(), "{error}");
    for (problem, expected) in error.problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}");
    }
}

#[test]
fn no_more_writes_are_allowed_than_the_log_can_queue_at_once() {
    assert_eq!(config_from("", &[], &[]).limits.writes, 8_192);
    assert_eq!(config_from("", &[], &["--limits.writes=8192"]).limits.writes, 8_192);
    let error = load_from("limits: {writes: 8193}", &[], &[]).unwrap_err();
    assert_eq!(
        error.problems,
        ["limits.writes: it has to be from 1 to 8192, half of what may wait for the log"]
    );
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_are_not_ours() {
    let config = config_from("", &[("KEYSTORE_PORT_7400_TCP", "tcp://10.0.0.1:7400")], &[]);
    assert_eq!(config, Config::default());
}

#[test]
fn help_names_every_setting() {
    let Ok(Command::Print(help)) = load_from("", &[], &["--help"]) else { panic!("no help") };
    for setting in SETTINGS {
        assert!(help.contains(&format!("--{} <", setting.path)), "{}", setting.path);
    }
    assert!(help.contains("[default: 0.0.0.0:7400]"), "{help}");
}

#[test]
fn a_file_that_is_missing_or_no_yaml_is_a_problem() {
    let missing = load(["--config=/no/such/file".into()].into_iter(), std::iter::empty());
    assert_eq!(missing.unwrap_err().problems.len(), 1);
    assert!(load_from("a: [", &[], &[]).is_err());
    assert!(load_from("just text", &[], &[]).is_err());
}
