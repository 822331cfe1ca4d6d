//! `colrow report`: one page about runs.

use std::path::PathBuf;

use colrow_tensor::Result;

use crate::output::{self, is_standard, print, write_out};
use crate::report::{self, Run};

/// Write one offline HTML page about one or several runs: curves, kept bytes, memory over a step.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folders; several are compared.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where to write the page; - is standard output [default: report.html in the first run's folder].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report.html"));
    if !is_standard(&out) {
        output::check_page(args.out.as_deref())?;
    }
    let runs = Run::load_all(&args.runs)?;
    let name = |run: &Run| Some(run.dir.file_name()?.to_string_lossy().into_owned());
    let title = format!("colrow: {}", runs.iter().filter_map(name).collect::<Vec<_>>().join(", "));
    if is_standard(&out) {
        let page = report::render(&title, &runs);
        return write_out(|out| out.write_all(page.as_bytes()));
    }
    report::check_out(&out, &args.runs)?;
    report::write(&title, &runs, &out)?;
    print(&out.display().to_string())
}
