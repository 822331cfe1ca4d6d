//! `colrow report`: one page about runs.

use std::path::PathBuf;

use colrow_tensor::Result;

use crate::output::print;
use crate::report::{self, Run};

/// Write one offline HTML page about one or several runs: curves, kept bytes, memory over a step.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folders; several are compared.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where to write the page [default: report.html in the first run's folder].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runs = args.runs.iter().map(|dir| Run::load(dir)).collect::<Result<Vec<_>>>()?;
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report.html"));
    report::check_out(&out, &args.runs)?;
    let names: Vec<_> = args.runs.iter().filter_map(|r| Some(r.file_name()?.to_string_lossy().into_owned())).collect();
    report::write(&format!("colrow: {}", names.join(", ")), &runs, &out)?;
    print(&out.display().to_string())
}
