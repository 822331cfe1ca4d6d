//! The memory plan: the real step and the real evaluation on the shape-only device, before any weight is read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use colrow_autograd::{CachePlace, Form, Keep, Ledger, NormSource, Policy, RowsOf};
use colrow_models::config::Config;
use colrow_models::model::Model;
use colrow_models::net::Site;
use colrow_tensor::{Bytes, DType, Device, Result};

use crate::comm::{Cut, Planned, Together};
use crate::data::{Batch, Lengths};
use crate::machine::Resident;
use crate::objective::Objective;
use crate::ratios::{self, Ratios};
use crate::step::{Engine, Hyperparameters};

/// What a run is made of, as far as memory is concerned.
pub struct Shape<'a> {
    /// The model.
    pub config: &'a Config,
    /// What it is trained for.
    pub objective: Arc<dyn Objective>,
    /// Adapts and freezes the model.
    pub choose_trained: &'a dyn Fn(&mut Model) -> Result<()>,
    /// How it is optimised.
    pub optim: Hyperparameters,
    /// Processes that share a step, of which the one with the most states is planned; `micros` are then shards of rounds.
    pub processes: usize,
    /// Rounds of shards in a step, which may be more than there are `micros` for.
    pub rounds: u64,
    /// What linears keep.
    pub policy: Arc<Policy>,
    /// Sites whose ratio may change; the step is planned as one that measures them.
    pub auto: &'a [(String, RowsOf)],
    /// Lengths of the sequences of each shard of a step. From the second on, shards that are alike need the same.
    pub micros: &'a [Lengths],
    /// Lengths of the batches that are evaluated between steps.
    pub evaluated: &'a [Lengths],
    /// Tokens of the training set, targets included, if norms are cached in memory.
    pub cached_tokens: usize,
    /// Threads of the processor that will run.
    pub threads: usize,
    /// What the process holds already: the program, tokenizer, data.
    pub resident: Resident,
    /// What it will hold beside the meter and beside the batch that is being run: the order of an epoch, other batches of a step, metrics.
    pub host: usize,
    /// Bytes of files that the run maps: they count as the process's, but the system can take them back.
    pub mapped: usize,
}

/// What one linear keeps.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SitePlan {
    /// The site.
    pub name: String,
    /// Its policy in words.
    pub policy: String,
    /// Bytes that its ops keep.
    pub kept_bytes: usize,
}

/// The plan of a run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    /// Bytes kept for the backward pass.
    pub kept_bytes: usize,
    /// Most bytes alive at once, on the meter, in a step or an evaluation.
    pub peak_bytes: usize,
    /// Those by class.
    pub peak_bytes_by_class: Bytes,
    /// Most bytes alive at once in an evaluation; 0 if there is none.
    pub evaluation_peak_bytes: usize,
    /// The process's largest resident set: what it holds already ([`Shape::resident`]), the peak, and what stands beside the meter
    /// ([`BESIDE`], [`BESIDE_PER_THREAD`], the operand that a matrix product copies, [`Shape::host`], a batch and its logits on the host, and
    /// [`Shape::mapped`]); or what reading the data took, if that was more.
    pub process_bytes: usize,
    /// Those of them that are mapped files, which the system takes back where memory is short.
    pub mapped_bytes: usize,
    /// Every site that keeps something, or could.
    pub sites: Vec<SitePlan>,
    /// Tokens of the step.
    pub tokens: usize,
    /// Kept bytes by site and op.
    pub ledger: Ledger,
    /// Bytes that the process sends to others in a step, where several share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Sites among [`Shape::auto`] that have a gradient to measure.
    #[serde(skip)]
    pub measured: HashSet<String>,
}

/// Memory that a run needs beside the meter and beside what a program holds that has read its data: pages of the program
/// itself, small host buffers, what the allocator holds back (12 MiB), and gaps between buffers (8 MiB).
pub const BESIDE: usize = (12 + 8) << 20;
/// The same for each thread: its stack, its share of packed matrices (the second-level cache), its part of the allocator.
pub const BESIDE_PER_THREAD: usize = 2 << 20;

/// What an MPI library takes beside the meter, and for each other process on the machine, of which no more than so many are counted: measured with
/// MPICH 5 and its shared memory, 2 to 4 processes (docs/processes.md).
const BESIDE_MPI: usize = 16 << 20;
const BESIDE_OTHER: usize = 8 << 20;
const MOST_OTHERS: usize = 15;

/// A policy in words, as reports print it; `auto` if the run chooses the ratio.
pub fn keep_name(keep: Keep, auto: bool) -> String {
    match keep {
        Keep::Exact => "exact".into(),
        Keep::Nothing | Keep::Chain => "rebuild".into(),
        Keep::Recompute => "recompute".into(),
        Keep::Quantised(bits) => bits.to_string(),
        Keep::Rows(s) => {
            format!("{}@{} ({} norms)", s.estimator, if auto { "auto".into() } else { s.ratio.to_string() }, s.norms)
        }
    }
}

/// What is said of a site that draws rows in the backward pass where nothing rebuilds its input.
pub(crate) const NOT_REBUILT: &str = ", keeps all rows: nothing rebuilds them";

/// Sites of the ledger with what they keep, each once, in order; `auto` are those whose ratio the run chooses.
pub fn sites(policy: &Policy, auto: &[(String, RowsOf)], known: &[Site], ledger: &Ledger) -> Vec<SitePlan> {
    let known: HashSet<&str> = known.iter().map(|site| site.name.as_str()).collect();
    let auto: HashSet<&str> = auto.iter().map(|(site, _)| site.as_str()).collect();
    let (mut sites, mut places) = (Vec::<SitePlan>::new(), HashMap::<&str, usize>::new());
    for entry in &ledger.entries {
        let name = entry.site.as_str();
        match places.get(name) {
            Some(&place) => sites[place].kept_bytes += entry.bytes,
            None => {
                let keep = policy.keep(name);
                let late = matches!(keep, Keep::Rows(s) if s.norms == NormSource::Current);
                let mut policy =
                    if known.contains(name) { keep_name(keep, auto.contains(name)) } else { entry.keep.to_string() };
                if late && entry.keep == Form::Exact {
                    policy += NOT_REBUILT;
                }
                places.insert(name, sites.len());
                sites.push(SitePlan { name: name.to_owned(), policy, kept_bytes: entry.bytes });
            }
        }
    }
    sites
}

/// Plans a run: its largest step, and its evaluations.
///
/// # Errors
/// Those of `choose_trained`; settings of the optimizer that exclude each other.
pub fn plan(shape: &Shape) -> Result<Plan> {
    let device = Device::meta(shape.threads);
    let mut model = Model::new(shape.config.clone(), &device, DType::F32);
    (shape.choose_trained)(&mut model)?;
    let micros: Vec<Batch> = shape.micros.iter().map(|lengths| shape.objective.batch_of_lengths(lengths)).collect();
    let linears = model.sites();
    let ratios = Ratios::new(ratios::AutoRatio { every: 1, share: 0.0 }, shape.auto);
    let ratios = Some(ratios).filter(|_| !shape.auto.is_empty());
    let engine =
        Engine::new(model, shape.optim).keeping(shape.policy.clone(), shape.cached_tokens, CachePlace::Memory)?;
    let mut engine = Engine { objective: shape.objective.clone(), ..engine };
    if shape.processes > 1 {
        // the one that has most of the states
        let parts = Cut::of(&engine.model.registry.params, shape.processes).lengths();
        let rank = (0..parts.len()).rev().max_by_key(|&rank| parts[rank]).unwrap_or(0);
        engine = engine.among(&Together::new(Arc::new(Planned { rank, size: shape.processes })), shape.optim);
    }
    (engine.gradient.ratios, engine.gradient.dropout) = (ratios, true);
    let stats = engine.step(&micros, 0.0, 1, false)?;
    let measured = engine.gradient.ratios.iter().flat_map(|ratios| ratios.variances().measures()).collect();
    let mut evaluation = Bytes::default();
    let mut batch = shape.micros.iter().map(Lengths::host_bytes).max().unwrap_or(0);
    for lengths in shape.evaluated {
        batch = batch.max(lengths.host_bytes() + lengths.sources.len() * shape.objective.host_bytes().outputs);
        device.meter().reset_peak();
        shape.objective.evaluate(&engine.model, &shape.objective.batch_of_lengths(lengths))?;
        evaluation = larger(evaluation, device.meter().peak());
    }
    let peak = larger(stats.peak, evaluation);
    let mpi = match shape.processes {
        1 => 0,
        n => BESIDE_MPI + BESIDE_OTHER * (n - 1).min(MOST_OTHERS),
    };
    let beside =
        mpi + BESIDE + shape.threads * BESIDE_PER_THREAD + device.packing() + batch + shape.host + shape.mapped;
    Ok(Plan {
        kept_bytes: stats.kept_bytes,
        peak_bytes: peak.total(),
        peak_bytes_by_class: peak,
        evaluation_peak_bytes: evaluation.total(),
        process_bytes: shape.resident.most.max(shape.resident.now.saturating_add(peak.total()).saturating_add(beside)),
        mapped_bytes: shape.mapped,
        sites: sites(&shape.policy, shape.auto, &linears, &stats.ledger),
        tokens: stats.tokens,
        ledger: stats.ledger,
        sent_bytes: stats.traffic.map(|traffic| {
            let rounds = micros.len().div_ceil(shape.processes) as u64;
            traffic.gradients / rounds * shape.rounds + traffic.weights
        }),
        measured,
    })
}

/// The one with the larger total, the first of equals.
pub(crate) fn larger(a: Bytes, b: Bytes) -> Bytes {
    if b.total() > a.total() { b } else { a }
}
