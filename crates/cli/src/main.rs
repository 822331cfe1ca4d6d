//! The `colrow` program: results on standard output, progress and warnings on standard error.
//!
//! A command is a file of `commands`: its arguments, and `run`, which asks the libraries and writes what they say. `predictor` is a saved model in
//! use, `report` the page about runs, `output` where results and warnings go. Nothing here computes: what a command does can be done from Rust by
//! `colrow_train` and `colrow_models`, as `examples/predict.rs` does.
//!
//! ```text
//! colrow init --data train.tsv --model sentence-transformers/all-MiniLM-L6-v2 --out recipe.toml
//! colrow plan recipe.toml --memory 2GiB
//! colrow train recipe.toml
//! colrow predict --model runs/train --data texts.txt
//! ```

mod arguments;
mod commands;
mod conversations;
mod estimates;
mod fetch;
mod memory;
mod npy;
mod output;
mod predictor;
mod processes;
mod progress;
mod report;
mod reviews;
mod runs;
mod saved;
mod setup;
mod signals;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use colrow_tensor::{Error, Kind, Result};

const AFTER_HELP: &str = "Exit codes: 0 success, 1 failure, 2 bad command line or recipe; of a run that a signal stopped, with its checkpoint written, \
                          130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP) or 138 (SIGUSR1).\n\nStart with: colrow quickstart";

/// Fine-tunes transformer language models in a fraction of the usual memory.
#[derive(Parser)]
#[command(name = "colrow", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    /// Number of threads [default: all processors].
    #[arg(long, global = true, value_name = "N", display_order = 100, value_parser = arguments::whole(1..=1024))]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quickstart(commands::quickstart::Args),
    Init(commands::init::Args),
    Train(commands::train::Args),
    Eval(commands::eval::Args),
    Predict(commands::predict::Args),
    Generate(commands::generate::Args),
    Merge(commands::merge::Args),
    Import(commands::import::Args),
    Export(commands::export::Args),
    Data(commands::data::Args),
    Plan(commands::plan::Args),
    Bench(commands::bench::Args),
    Estimate(commands::estimate::Args),
    Inspect(commands::inspect::Args),
    Compare(commands::compare::Args),
    PaperMemory(commands::paper_memory::Args),
    Report(commands::report::Args),
    /// Print a completion script for a shell.
    ///
    /// For bash: source <(colrow completions bash)
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn run(cli: Cli) -> Result<()> {
    colrow_tensor::check_environment()?;
    if let Some(threads) = cli.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::new(format!("cannot start {threads} threads: {e}")))?;
    }
    match cli.command {
        Command::Quickstart(args) => commands::quickstart::run(&args),
        Command::Init(args) => commands::init::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Import(args) => commands::import::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Data(args) => commands::data::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Estimate(args) => commands::estimate::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::PaperMemory(args) => commands::paper_memory::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Completions { shell } => {
            // into memory first: the generator does not survive a reader that closes its pipe
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "colrow", &mut script);
            output::write_out(|out| out.write_all(&script))
        }
    }
}

fn main() -> ExitCode {
    signals::survive_file_limit();
    let ran = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(e) if e.use_stderr() => {
            output::say(e.render().to_string().trim_end());
            return ExitCode::from(2);
        }
        // help and version
        Err(e) => output::write_out(|_| e.print()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::say(&format!("error: {e}"));
            ExitCode::from(match e.kind() {
                Kind::Usage => 2,
                Kind::Failure => 1,
                Kind::Stopped(signal) => 128 + signal,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
