//! `colrow estimate`: bias and error of every estimator on given matrices.

use std::path::PathBuf;

use colrow_autograd::{Draw, estimate_product};
use colrow_models::apart;
use colrow_tensor::rng::Key;
use colrow_tensor::{Class, Device, Error, Estimator, Result};
use rayon::prelude::*;

use crate::arguments::whole;
use crate::estimates::{COLUMNS, Report, Row};
use crate::output::{self, Counter, print, print_json};
use crate::{npy, report};

/// Estimate the product dZᵀ·X from sampled rows, by every estimator with true norms, and compare with the exact product.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Input rows, a .npy file (n, d_in) of floats of 16, 32 or 64 bits, or of ml_dtypes' bfloat16.
    #[arg(long, value_name = "FILE")]
    x: PathBuf,
    /// Output-gradient rows, a .npy file (n, d_out).
    #[arg(long, value_name = "FILE")]
    dz: PathBuf,
    /// Share of the rows that is drawn, in (0, 1].
    #[arg(long, value_name = "R", default_value_t = 0.3)]
    ratio: f64,
    /// Number of draws.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = whole(2..=1_000_000))]
    trials: usize,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write an offline HTML page with pictures.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const ESTIMATORS: [(&str, Option<Estimator>); 5] = [
    ("exact", None),
    ("topk", Some(Estimator::TopK)),
    ("crs", Some(Estimator::Crs)),
    ("wta", Some(Estimator::Wta)),
    ("pps", Some(Estimator::Pps)),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    if !(args.ratio > 0.0 && args.ratio <= 1.0) {
        return Err(Error::usage(format!("--ratio: expected a number in (0, 1], found {}", args.ratio)));
    }
    output::check_page(args.out.as_deref())?;
    if let Some(out) = &args.out {
        apart::check_file(out, [&*args.x, &*args.dz])?;
    }
    let (x, dz) = (npy::read(&args.x)?, npy::read(&args.dz)?);
    if x.rows != dz.rows {
        return Err(Error::usage(format!("expected as many rows in --dz as in --x, {}, found {}", x.rows, dz.rows))
            .at(args.dz.display()));
    }
    let trials = args.trials as u64;
    let device = Device::cpu();
    let x = device.tensor(Class::Workspace, &[x.rows, x.cols], &x.values);
    let dz = device.tensor(Class::Workspace, &[dz.rows, dz.cols], &dz.values);
    let n = x.rows();
    let k = ((args.ratio * n as f64).round() as usize).clamp(1, n);
    let mut exact = device.empty(Class::Workspace, x.dtype(), &[dz.cols(), x.cols()]);
    device.kernels().matmul(&dz, true, &x, false, 0.0, &mut exact);
    let exact = exact.to_f64();
    if exact.iter().all(|&g| g == 0.0) {
        return Err(Error::new("the exact product is zero; relative errors mean nothing"));
    }
    let mut counter = Counter::new("estimate", "draws");
    let (mut drawn, all) = (0, trials * (ESTIMATORS.len() - 1) as u64);
    let estimators = ESTIMATORS.map(|(name, estimator)| match estimator {
        None => Row { estimator: name, slope: 1.0, slope_se: 0.0, bias: 0.0, rmse: 0.0 },
        Some(estimator) => {
            let key = Key::new(args.seed).named(name);
            let draw = |t| {
                let how = Draw { estimator, rows: k, uniform: 0.0, key: key.child(t) };
                estimate_product(&how, &x, &dz).to_f64()
            };
            measure(name, &exact, trials, draw, |more| {
                drawn += more;
                counter.set(drawn, all);
            })
        }
    });
    drop(counter);
    let report = Report {
        estimators: estimators.into(),
        rows: n,
        drawn: k,
        trials,
        x: args.x.display().to_string(),
        dz: args.dz.display().to_string(),
        columns: [x.cols(), dz.cols()],
    };
    if let Some(out) = &args.out {
        report::write_estimates(&report, out)?;
    }
    if args.json {
        return print_json(&report);
    }
    let head = format!(
        "{k} of {n} rows, {trials} draws\n{:<10} {:>10} {:>10} {:>10} {:>10}",
        "estimator", "slope", "± s.e.", "bias", "rmse"
    );
    let line = |r: &Row| {
        format!("{:<10} {:>10.5} {:>10.5} {:>10.5} {:>10.5}", r.estimator, r.slope, r.slope_se, r.bias, r.rmse)
    };
    let rows = std::iter::once(head).chain(report.estimators.iter().map(line)).chain([String::new()]);
    let words = COLUMNS.iter().map(|(name, words)| format!("{name:<6} {words}"));
    print(&rows.chain(words).collect::<Vec<_>>().join("\n"))
}

/// Sums over some trials.
struct Sums {
    product: Vec<f64>,
    slope: f64,
    slope_squared: f64,
    error_squared: f64,
}

impl Sums {
    fn new(len: usize) -> Self {
        Self { product: vec![0.0; len], slope: 0.0, slope_squared: 0.0, error_squared: 0.0 }
    }

    fn add(mut self, other: &Self) -> Self {
        self.product.iter_mut().zip(&other.product).for_each(|(a, b)| *a += b);
        self.slope += other.slope;
        self.slope_squared += other.slope_squared;
        self.error_squared += other.error_squared;
        self
    }
}

/// Trials that one task sums up; fixed, so that threads do not change the result.
const BLOCK: u64 = 16;

/// `done` is told of every so many trials.
fn measure(
    estimator: &'static str,
    exact: &[f64],
    trials: u64,
    draw: impl Fn(u64) -> Vec<f64> + Sync,
    mut done: impl FnMut(u64),
) -> Row {
    let norm_squared: f64 = exact.iter().map(|g| g * g).sum();
    let block = |b: u64| {
        let mut sums = Sums::new(exact.len());
        for t in b * BLOCK..trials.min((b + 1) * BLOCK) {
            let product = draw(t);
            let slope = product.iter().zip(exact).map(|(a, g)| a * g).sum::<f64>() / norm_squared;
            sums.slope += slope;
            sums.slope_squared += slope * slope;
            sums.error_squared += product.iter().zip(exact).map(|(a, g)| (a - g) * (a - g)).sum::<f64>();
            sums.product.iter_mut().zip(&product).for_each(|(s, a)| *s += a);
        }
        sums
    };
    let blocks = trials.div_ceil(BLOCK);
    // a wave of blocks at a time bounds the memory that their sums take
    let waves = (0..blocks).step_by(64).map(|first| {
        let wave = first..blocks.min(first + 64);
        let drawn = trials.min(wave.end * BLOCK) - first * BLOCK;
        let sums = wave.into_par_iter().map(block).collect::<Vec<_>>();
        done(drawn);
        sums
    });
    let sums = waves.flatten().fold(Sums::new(exact.len()), |sum, b| sum.add(&b));
    let t = trials as f64;
    let slope = sums.slope / t;
    let variance = (sums.slope_squared / t - slope * slope).max(0.0) * t / (t - 1.0);
    let bias_squared: f64 = sums.product.iter().zip(exact).map(|(a, g)| (a / t - g).powi(2)).sum();
    Row {
        estimator,
        slope,
        slope_se: (variance / t).sqrt(),
        bias: (bias_squared / norm_squared).sqrt(),
        rmse: (sums.error_squared / t / norm_squared).sqrt(),
    }
}
