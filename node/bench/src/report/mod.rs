//! The report for people: a page with tables and plots, made of the JSON of one or several runs.

mod plots;
mod readme;
mod results;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;

pub(crate) use results::Results;

/// Written by hand, and never by this.
const PROFILE: &str = "profile.md";

#[derive(Debug, Clone, Args)]
pub(crate) struct Wanted {
    /// What `--json` has written; of several, later ones count for the parts that they hold.
    #[arg(long, required = true, num_args = 1..)]
    from: Vec<PathBuf>,
    /// A directory, of which README.md and the plots are written.
    #[arg(long)]
    to: PathBuf,
}

pub(crate) fn write(wanted: &Wanted, allow_disturbed: bool) -> Result<()> {
    let mut all = wanted.from.iter().map(|path| Results::read(path));
    let first = all.next().context("there is nothing to report")??;
    let results = all.try_fold(first, |results, later| results.with(later?))?;
    if !allow_disturbed {
        results.check_undisturbed()?;
    }
    fs::create_dir_all(&wanted.to)?;
    let plots = results.compare.as_ref().map(plots::draw).transpose()?.unwrap_or_default();
    for plot in &plots {
        write_file(&wanted.to.join(plot.file), &plot.svg)?;
    }
    let has_profile = wanted.to.join(PROFILE).exists();
    let page = readme::Page { results: &results, plots: &plots, profile: has_profile.then_some(PROFILE) };
    write_file(&wanted.to.join("README.md"), &page.markdown())
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
