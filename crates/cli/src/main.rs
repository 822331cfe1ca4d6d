//! The `colrow` program: results on standard output, progress and warnings on standard error.

mod commands;
mod fetch;
mod memory;
mod npy;
mod progress;
mod report;
mod reviews;
mod signals;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use colrow_tensor::{Error, Kind, Result};

/// Fine-tunes transformer language models in a fraction of the usual memory.
#[derive(Parser)]
#[command(name = "colrow", version, arg_required_else_help = true, after_help = "Start with: colrow quickstart")]
struct Cli {
    /// Number of threads [default: all processors].
    #[arg(long, global = true, value_name = "N", display_order = 100)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quickstart(commands::quickstart::Args),
    Train(commands::train::Args),
    Eval(commands::eval::Args),
    Predict(commands::predict::Args),
    Merge(commands::merge::Args),
    Plan(commands::plan::Args),
    Bench(commands::bench::Args),
    Estimate(commands::estimate::Args),
    Inspect(commands::inspect::Args),
    Compare(commands::compare::Args),
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
    if let Some(threads) = cli.threads {
        if threads == 0 {
            return Err(Error::usage("--threads: expected at least 1, found 0"));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::new(format!("cannot start {threads} threads: {e}")))?;
    }
    match cli.command {
        Command::Quickstart(args) => commands::quickstart::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Estimate(args) => commands::estimate::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Completions { shell } => {
            // into memory first: the generator does not survive a reader that closes its pipe
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "colrow", &mut script);
            commands::print(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(match e.kind() {
                Kind::Usage => 2,
                Kind::Failure => 1,
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
