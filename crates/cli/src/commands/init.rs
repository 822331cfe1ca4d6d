//! `colrow init`: a first recipe.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use colrow_models::atomic;
use colrow_tensor::{Error, Result};
use colrow_train::draft::draft;

use crate::output::{is_standard, print};

/// Write a commented recipe: with --data the columns, task, labels and lengths that are seen in the file, by the model's tokenizer with --model.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Labelled file (CSV, TSV, JSON lines, Parquet), folder in GLUE's layout, conversations, or for a decoder texts.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Model folder or hub id.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    model: Option<String>,
    /// Where to write; never over a file that is there; - is standard output [default: -].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = args.out.as_deref().filter(|out| !is_standard(out));
    let exists = |path: &Path| Error::usage("--out: this file exists, and is not written over").at(path.display());
    // before the data is read
    match out {
        Some(path) if path.symlink_metadata().is_ok() => return Err(exists(path)),
        Some(path) => atomic::check_file(path)?,
        None => {}
    }
    let text = draft(args.data.as_deref(), args.model.as_deref())?;
    let Some(path) = out else { return print(&text) };
    let write = || std::fs::File::create_new(path)?.write_all(format!("{text}\n").as_bytes());
    write().map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => exists(path),
        _ => Error::new(format!("cannot write the recipe: {e}")).at(path.display()),
    })
}
