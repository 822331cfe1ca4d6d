//! `colrow inspect`: what sampling would cost on a real model and data, site by site.

use std::path::{Path, PathBuf};

use colrow_models::apart;
use colrow_models::checkpoint::hub::Needs;
use colrow_tensor::Result;
use colrow_train::inspect::{Evidence, Inspection, RATIOS, SiteEvidence, inspect};
use colrow_train::recipe::{Method, Ratio};
use colrow_train::{prepare, ratios};

use super::RecipeArgs;
use crate::arguments::whole;
use crate::output::{self, Counter, print, print_json};
use crate::{npy, report};

/// Measure on a recipe's model and data how the rows' probability mass is spread and how far every estimator is from the exact
/// gradient, linear by linear.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Batches to look at.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = whole(1..=1_000_000))]
    steps: usize,
    /// Passes over these batches that train before, so that norms are remembered.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole(0..=1_000_000))]
    passes: usize,
    /// Draws by which each error is measured.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = whole(1..=1_000_000))]
    draws: usize,
    /// Write an offline HTML page with pictures.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the input and the output gradient of this linear in the first batch that is looked at, as SITE.x.npy and SITE.dz.npy for
    /// colrow estimate.
    #[arg(long, value_name = "SITE")]
    export: Option<String>,
    /// Folder for these files [default: the current one].
    #[arg(long, value_name = "DIR", requires = "export")]
    export_to: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    output::check_page(args.out.as_deref())?;
    let exported = args.export.as_ref().map(|site| {
        let folder = args.export_to.clone().unwrap_or_else(|| PathBuf::from("."));
        ["x", "dz"].map(|what| folder.join(format!("{site}.{what}.npy")))
    });
    exported.iter().flatten().try_for_each(|file| output::check_file(file, &[b"\x93NUMPY"]))?;
    let mut job = prepare::prepare(args.recipe.load()?, Needs::Weights)?;
    for out in args.out.iter().chain(exported.iter().flatten()) {
        let data = [&job.recipe.data.train, &job.recipe.data.dev].into_iter().flatten().map(Path::new);
        let files = data.filter(|path| path.is_file()).chain([&*args.recipe.recipe, &*job.model_dir]);
        apart::check_file(out, files)?;
    }
    let (steps, passes, draws) = (args.steps, args.passes, args.draws as u64);
    let settings = Inspection { steps, passes, draws, export: args.export.clone() };
    let mut counter = Counter::new("inspect", "batches");
    let evidence = inspect(&mut job, &settings, |done, of| counter.set(done as u64, of as u64));
    drop(counter);
    job.warnings.iter().for_each(|w| output::warn(w));
    let evidence = evidence?;
    if job.recipe.train.method != Method::Full {
        output::warn(&format!(
            "by train.method = {} only linears whose whole weight is trained are looked at; all others are by --set train.method=full",
            job.recipe.train.method
        ));
    }
    if let Some(out) = &args.out {
        report::write_evidence(&evidence, out)?;
    }
    if let (Some([x, dz]), Some(operands)) = (&exported, &evidence.operands) {
        npy::write(x, &operands.x)?;
        npy::write(dz, &operands.dz)?;
        output::say(&format!("colrow estimate --x {} --dz {} reads what was exported", x.display(), dz.display()));
    }
    let ratio = match job.recipe.keep.ratio {
        Ratio::Fixed(ratio) => ratio,
        Ratio::Auto => ratios::START,
    };
    if args.json { print_json(&evidence) } else { print(&text(&evidence, ratio)) }
}

/// A line a site, at the measured ratio that is nearest to the recipe's.
fn text(evidence: &Evidence, ratio: f64) -> String {
    let distance = |r: &usize| (RATIOS[*r] - ratio).abs();
    let r = (0..RATIOS.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
    let columns = [
        ("crs", "current"),
        ("wta", "current"),
        ("pps", "current"),
        ("wta", "cached"),
        ("pps", "cached"),
        ("pps", "running"),
        ("pps", "uniform"),
    ];
    let width = evidence.sites.iter().map(|s| s.name.len()).max().unwrap_or(0).max(4);
    let heads = columns.iter().map(|(e, n)| format!("{e} {n}")).chain(["recipe".into()]);
    let head: String = heads.map(|head| format!("  {head:>11}")).collect();
    let about = &evidence.about;
    let batches = match evidence.steps {
        1 => format!("one batch of {:.0} tokens", evidence.rows_per_step),
        n => format!("{n} batches of {:.0} tokens on average", evidence.rows_per_step),
    };
    let mut lines = vec![
        format!(
            "{} on {} ({}): {}; the recipe keeps {}, {}@{}, {} norms",
            about.model, about.data, about.task, batches, about.policy, about.estimator, about.ratio, about.norms
        ),
        format!(
            "relative error of dW at {} of the rows, and as the recipe keeps them; in brackets its variance over the minibatch's",
            RATIOS[r]
        ),
        format!("{:width$}  top 10 %  |C|/k  condition{head}", "site"),
    ];
    let line = |site: &SiteEvidence| {
        let at = &site.ratios[r];
        let found = |(e, n): &(&str, &str)| at.estimators.iter().find(|x| x.estimator == *e && x.norms == *n);
        let estimators = columns.iter().map(|c| found(c).map(|x| (x.rmse, x.variance_to_minibatch)));
        let recipe = (site.recipe.rmse, site.recipe.variance_to_minibatch);
        let cell = |error: Option<(f64, Option<f64>)>| {
            let text = error.map_or(String::new(), |(rmse, variance)| {
                // codes of eight bits are off by a few thousandths
                let digits = if rmse < 0.1 { 4 } else { 2 };
                match variance {
                    Some(v) => format!("{rmse:.digits$} ({v:.2})"),
                    None => format!("{rmse:.digits$}"),
                }
            });
            format!("  {text:>11}")
        };
        let cells: String = estimators.chain([Some(recipe)]).map(cell).collect();
        let top = 100.0 * site.mass[2].share;
        format!("{:width$}  {top:>6.1} %  {:>5.2}  {:>7.0} %{cells}", site.name, at.certain_share, 100.0 * at.condition)
    };
    lines.extend(evidence.sites.iter().map(line));
    lines.push(line(&evidence.mean));
    lines.join("\n")
}
