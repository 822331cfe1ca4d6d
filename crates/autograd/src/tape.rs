//! The tape: a list of ops that the backward pass pops in reverse, dropping each when it is done.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, Device, Error, Result, Tensor};

pub(crate) use crate::grads::{Grads, VarId};
use crate::kept::Rebuild;
use crate::ledger::Ledger;
use crate::norm_memory::NormMemory;
pub(crate) use crate::op::Op;
use crate::param::{Handle, Param, ParamId, Params};
use crate::policy::{Keep, Policy};
use crate::probe::Probe;
use crate::timeline::{Mark, Phase};
use crate::variance::Variances;

/// A tensor on the tape.
#[derive(Clone, Debug)]
pub struct Var {
    /// Its numbers.
    pub value: Tensor,
    /// Names its gradient; none if nothing before it is learned.
    pub id: Option<VarId>,
    /// How to make it again from what its producer keeps.
    pub source: Option<Arc<dyn Rebuild>>,
    /// The block that it is the output of, if that runs again in the backward pass: to make it again costs the block's forward pass.
    pub block: Option<Arc<dyn Rebuild>>,
}

/// What a pass is for.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Predictions: no dropout, nothing recorded.
    Inference,
    /// A gradient: ops are recorded.
    Training {
        /// Stream of this step's random numbers.
        key: Key,
        /// Whether dropout acts.
        dropout: bool,
        /// What linears keep.
        policy: Arc<Policy>,
        /// Remembered norms of dZ, for policies that draw by them.
        norms: Option<Arc<NormMemory>>,
        /// Measures variances, at sites whose ratio follows them.
        variances: Option<Arc<Variances>>,
        /// Sees the operands of weight gradients.
        probe: Option<Arc<dyn Probe>>,
    },
}

impl Mode {
    /// Whether the policy has what it draws by.
    ///
    /// # Errors
    /// A policy that draws rows by remembered norms, and no memory of them: every row would count as equally large.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Training { policy, norms: None, variances, .. } if policy.needs_memory(variances.is_some()) => {
                Err(Error::new("the policy draws rows by cached or running norms, and there is no memory of norms")
                    .hint("give Mode::Training a NormMemory of these sites, or draw by current or uniform norms"))
            }
            _ => Ok(()),
        }
    }
}

struct Node {
    site: String,
    output: VarId,
    op: Box<dyn Op>,
}

/// The ops of a forward pass. They hold what they need of the parameters, which may change while the ops run backward.
#[derive(Default)]
pub struct Recorded {
    /// Why there is no backward pass.
    refusal: Option<Error>,
    nodes: Vec<Node>,
    vars: usize,
    timeline: Option<Vec<Mark>>,
}

/// Records the ops of one forward pass and runs them backward.
pub struct Tape<'p> {
    params: &'p Params,
    mode: Mode,
    recorded: Recorded,
    /// Set while a block runs that will run again in the backward pass: its ops are not recorded, but the parameters that they use are.
    passing: Option<RefCell<BTreeSet<ParamId>>>,
    /// Set: check every output, and note the first site whose output is not finite.
    check: bool,
    not_finite: Option<String>,
    /// Set where the backward pass follows at once: what ops keep lives for this block alone.
    brief: bool,
}

impl<'p> Tape<'p> {
    /// An empty tape over a model's parameters. If `mode` is not sound (see [`Mode::check`]), its backward pass is an error.
    pub fn new(params: &'p Params, mode: Mode) -> Self {
        let recorded = Recorded { refusal: mode.check().err(), ..Recorded::default() };
        Self { params, mode, recorded, passing: None, check: false, not_finite: None, brief: false }
    }

    /// For a block that runs again, and then backward at once.
    #[must_use]
    pub(crate) fn brief(mut self) -> Self {
        self.brief = true;
        self
    }

    /// Whether what ops keep lives for one block alone, so that what takes long to be made again is better kept.
    pub(crate) fn is_brief(&self) -> bool {
        self.brief
    }

    /// Notes live bytes after every op; see [`Grads::timeline`].
    #[must_use]
    pub fn with_timeline(mut self) -> Self {
        self.recorded.timeline = Some(Vec::new());
        self
    }

    /// Checks every output for numbers that are not finite; see [`Tape::not_finite`].
    #[must_use]
    pub fn with_check(mut self) -> Self {
        self.check = true;
        self
    }

    /// The first site whose output was not finite, if outputs are checked.
    pub fn not_finite(&self) -> Option<&str> {
        self.not_finite.as_deref()
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        self.params.device()
    }

    /// A parameter.
    pub fn param(&self, id: ParamId) -> &'p Param {
        if let Some(used) = &self.passing {
            used.borrow_mut().insert(id);
        }
        &self.params[id]
    }

    /// A parameter for an op to hold.
    pub fn handle(&self, id: ParamId) -> Handle {
        Handle::new(id, self.param(id))
    }

    /// Runs `block` without recording its ops. Gives its output and the parameters that it used, as a list of their own.
    pub(crate) fn run_unrecorded(&mut self, block: impl FnOnce(&mut Self) -> Var) -> (Var, Params) {
        self.passing = Some(RefCell::default());
        let y = block(self);
        let used = self.passing.take().unwrap_or_default().into_inner();
        (y, self.params.subset(used))
    }

    /// An empty list of gradients of the parameters.
    pub(crate) fn no_gradients(&self) -> Grads {
        Grads::new(self.params)
    }

    /// Runs `part` in another mode.
    pub(crate) fn with_mode<T>(&mut self, mode: Mode, part: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.mode, mode);
        let y = part(self);
        self.mode = outer;
        y
    }

    /// A tensor that a gradient is wanted for, if `learns`, and that no op gave.
    pub(crate) fn input(&mut self, value: Tensor, learns: bool) -> Var {
        let id = learns.then(|| {
            self.recorded.vars += 1;
            VarId(self.recorded.vars - 1)
        });
        Var { id, ..self.constant(value) }
    }

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Whether ops are recorded.
    pub fn records(&self) -> bool {
        matches!(self.mode, Mode::Training { .. }) && self.passing.is_none()
    }

    /// What the op at `site` keeps.
    pub fn keep(&self, site: &str) -> Keep {
        match &self.mode {
            Mode::Training { policy, .. } => policy.keep(site),
            Mode::Inference => Keep::Exact,
        }
    }

    /// The stream of `site`'s stochastic rounding.
    pub fn rounding_key(&self, site: &str) -> Option<Key> {
        match &self.mode {
            Mode::Training { key, .. } => Some(key.named(site).named("rounding")),
            Mode::Inference => None,
        }
    }

    /// The stream of `site`'s dropout, if dropout acts.
    pub fn dropout_key(&self, site: &str) -> Option<Key> {
        match &self.mode {
            Mode::Training { key, dropout: true, .. } => Some(key.named(site).named("dropout")),
            _ => None,
        }
    }

    /// A tensor that is not learned.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, id: None, source: None, block: None }
    }

    /// An output of `site`: recorded with `op` if `learns`, i.e. if a gradient flows through it to anything.
    pub fn output<O: Op + 'static>(&mut self, site: &str, value: Tensor, learns: bool, op: impl FnOnce() -> O) -> Var {
        let id = (learns && self.records()).then(|| {
            let op: Box<dyn Op> = Box::new(op());
            for (_, kept) in op.kept() {
                kept.tensors().into_iter().filter(|t| t.class() != Class::Kept).for_each(|t| t.reclass(Class::Kept));
            }
            let output = VarId(self.recorded.vars);
            self.recorded.vars += 1;
            self.recorded.nodes.push(Node { site: site.to_owned(), output, op });
            output
        });
        Var { id, ..self.unrecorded(site, value) }
    }

    /// An output of `site` that no gradient flows through.
    pub(crate) fn unrecorded(&mut self, site: &str, value: Tensor) -> Var {
        if self.check && self.not_finite.is_none() && !value.sum_squares().is_finite() {
            self.not_finite = Some(site.to_owned());
        }
        if let Some(timeline) = &mut self.recorded.timeline {
            let live = self.params.device().meter().live();
            timeline.push(Mark { phase: Phase::Forward, at: site.to_owned(), live });
        }
        self.constant(value)
    }

    /// What the recorded ops keep.
    pub fn ledger(&self) -> Ledger {
        Ledger::of(self.recorded.nodes.iter().map(|n| (n.site.as_str(), &*n.op)))
    }

    /// The recorded ops, which no longer borrow the parameters.
    pub fn into_recorded(self) -> Recorded {
        self.recorded
    }

    /// Adds `scale` times the gradient of the sum of `of`'s elements to `grads`, popping every op.
    ///
    /// # Errors
    /// Those of the ops and of [`Mode::check`].
    pub fn backward(self, of: Var, scale: f64, grads: &mut Grads) -> Result<()> {
        self.recorded.backward(of, scale, grads, &mut |_| Ok(()))
    }

    /// As [`Tape::backward`], from a given gradient `dy` of `of`.
    ///
    /// # Errors
    /// Those of the ops and of [`Mode::check`].
    pub fn backward_from(self, of: Var, dy: Tensor, grads: &mut Grads) -> Result<()> {
        self.recorded.backward_from(of.id, dy, grads, &mut |_| Ok(()))
    }
}

impl Recorded {
    /// As [`Tape::backward`]; `after` gets the gradients after each op, to take those that are final: see [`Grads::take_final`].
    ///
    /// # Errors
    /// Those of the ops and of `after`.
    pub fn backward(
        self,
        of: Var,
        scale: f64,
        grads: &mut Grads,
        after: &mut dyn FnMut(&mut Grads) -> Result<()>,
    ) -> Result<()> {
        let mut dy = of.value.empty_like();
        dy.write_f64(std::iter::repeat_n(scale, of.value.len()));
        let id = of.id;
        drop(of);
        self.backward_from(id, dy, grads, after)
    }

    pub(crate) fn backward_from(
        mut self,
        of: Option<VarId>,
        dy: Tensor,
        grads: &mut Grads,
        after: &mut dyn FnMut(&mut Grads) -> Result<()>,
    ) -> Result<()> {
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        grads.vars = (0..self.vars).map(|_| None).collect();
        grads.add(of, dy);
        while let Some(Node { site, output, op }) = self.nodes.pop() {
            match grads.vars[output.0].take() {
                Some(dy) => op.backward(dy, grads).map_err(|e: Error| e.at(&site))?,
                None => drop(op),
            }
            after(grads)?;
            if let Some(timeline) = &mut self.timeline {
                let live = grads.device.meter().live();
                timeline.push(Mark { phase: Phase::Backward, at: site, live });
            }
        }
        grads.timeline = self.timeline.take().unwrap_or_default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::{Activation, Bytes, DType, Estimator};

    use super::*;
    use crate::Form;
    use crate::testing::{check_gradients, check_precision, random_params, training};
    use crate::{Attend, BatchPlaces, Bits, CachePlace, Keep, NormSource, Places, RowsOf, Sampling, Sequences};

    const LAYERS: usize = 2;
    const LENGTHS: [usize; 3] = [5, 1, 9];
    const TOKENS: usize = 15;
    const LINEARS: [&str; 4] = ["qkv", "out", "up", "down"];

    /// A small encoder with a classifier, as BERT is built.
    struct Encoder {
        device: Device,
        params: Params,
        ids: Vec<ParamId>,
    }

    /// Ids, positions, bounds, first rows, labels.
    struct Batch([Tensor; 5]);

    impl Encoder {
        fn new(device: &Device, dtype: DType) -> Self {
            let mut params = Params::new(device, dtype);
            let (d, f) = (6, 10);
            let mut list: Vec<(String, Vec<usize>)> =
                vec![("words".into(), vec![20, d]), ("positions".into(), vec![9, d])];
            list.extend(["gamma", "beta"].map(|name| (format!("embeddings.{name}"), vec![d])));
            for layer in 0..LAYERS {
                let shapes: [(&str, &[usize]); 12] = [
                    ("qkv", &[3 * d, d]),
                    ("qkv.bias", &[3 * d]),
                    ("out", &[d, d]),
                    ("out.bias", &[d]),
                    ("gamma1", &[d]),
                    ("beta1", &[d]),
                    ("up", &[f, d]),
                    ("up.bias", &[f]),
                    ("down", &[d, f]),
                    ("down.bias", &[d]),
                    ("gamma2", &[d]),
                    ("beta2", &[d]),
                ];
                list.extend(shapes.map(|(name, shape)| (format!("layer.{layer}.{name}"), shape.to_vec())));
            }
            list.extend([("pooler".into(), vec![d, d]), ("classifier".into(), vec![3, d])]);
            let ids = list.iter().map(|(name, shape)| {
                let id = params.add(name, shape, false);
                let key = Key::new(31).named(name);
                params[id]
                    .value
                    .dense_mut()
                    .write_f64((0..shape.iter().product::<usize>() as u64).map(|i| 0.5 * key.normal(i)));
                id
            });
            let ids = ids.collect();
            Self { device: device.clone(), params, ids }
        }

        fn batch(&self) -> Batch {
            let u32s = |data: &[u32]| self.device.tensor(Class::Workspace, &[data.len()], data);
            let bounds: Vec<u32> = [0, 5, 6, 15].to_vec();
            let positions: Vec<u32> = LENGTHS.iter().flat_map(|&n| 0..n as u32).collect();
            let words: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7 % 13).collect();
            Batch([u32s(&words), u32s(&positions), u32s(&bounds), u32s(&bounds[..3]), u32s(&[2, 0, 1])])
        }

        fn loss(&self, tape: &mut Tape<'_>, Batch([words, positions, bounds, first, labels]): &Batch) -> Var {
            let id = |i: usize| self.ids[i];
            let x = tape.embedding("embeddings", &[(words, id(0)), (positions, id(1))]);
            let x = tape.layer_norm("embeddings.norm", &x, id(2), id(3), 1e-12);
            let mut x = tape.dropout("embeddings.dropout", x, 0.1);
            let sequences = Sequences { bounds: bounds.clone(), longest: 9 };
            let attend = Attend { dropout: 0.1, ..Attend::new(2, 0.6) };
            for layer in 0..LAYERS {
                let at = |name: &str| format!("layer.{layer}.{name}");
                let id = |i: usize| self.ids[4 + 12 * layer + i];
                let qkv = tape.linear(&at("qkv"), &x, id(0), Some(id(1)));
                let a = tape.attention(&at("attention"), &attend, (qkv, &sequences), None);
                let o = tape.linear(&at("out"), &a, id(2), Some(id(3)));
                let o = tape.dropout(&at("out.dropout"), o, 0.1);
                let s = tape.add(&at("out.residual"), o, &x);
                x = tape.layer_norm(&at("norm1"), &s, id(4), id(5), 1e-12);
                let u = tape.linear(&at("up"), &x, id(6), Some(id(7)));
                let u = tape.activate(&at("gelu"), Activation::Gelu, u);
                let o = tape.linear(&at("down"), &u, id(8), Some(id(9)));
                let o = tape.dropout(&at("down.dropout"), o, 0.1);
                let s = tape.add(&at("down.residual"), o, &x);
                x = tape.layer_norm(&at("norm2"), &s, id(10), id(11), 1e-12);
            }
            let first = tape.rows("first", &x, first);
            drop(x);
            let pooled = tape.linear("pooler", &first, self.ids[self.ids.len() - 2], None);
            let pooled = tape.tanh("pooler.tanh", pooled);
            let logits = tape.linear("classifier", &pooled, self.ids[self.ids.len() - 1], None);
            tape.cross_entropy("loss", &logits, labels)
        }

        fn memory(&self) -> Arc<NormMemory> {
            let site = |l: usize, name: &str| (format!("layer.{l}.{name}"), RowsOf::Tokens);
            let sites: Vec<_> = (0..LAYERS).flat_map(|l| LINEARS.map(|name| site(l, name))).collect();
            let memory = NormMemory::new(&self.device, &sites, TOKENS, CachePlace::Memory).unwrap();
            let positions = LENGTHS.iter().flat_map(|&n| (0..n as u32).map(|p| (p, p == 0))).collect();
            let tokens = Places { tokens: Some((0..TOKENS as u64).collect()), positions };
            memory.begin(BatchPlaces { tokens, targets: Places::default(), weight: 3.0 });
            Arc::new(memory)
        }
    }

    fn policies() -> Vec<(String, Policy)> {
        let rows = |estimator, norms, ratio| Keep::Rows(Sampling { estimator, ratio, norms, uniform: 0.1 });
        let mut list = vec![
            ("exact".to_owned(), Policy::exact()),
            ("nothing".to_owned(), Policy::everywhere(Keep::Nothing)),
            ("int8".to_owned(), Policy::everywhere(Keep::Quantised(Bits::Int8))),
        ];
        for estimator in [Estimator::TopK, Estimator::Crs, Estimator::Wta, Estimator::Pps] {
            for norms in [NormSource::Current, NormSource::Cached, NormSource::Running, NormSource::Uniform] {
                list.push((format!("{estimator:?} {norms:?}"), Policy::everywhere(rows(estimator, norms, 0.3))));
            }
        }
        let mixed = [
            ("out", rows(Estimator::Pps, NormSource::Cached, 0.5)),
            ("down", rows(Estimator::Wta, NormSource::Current, 0.2)),
            ("up", Keep::Nothing),
        ];
        let mixed = (0..LAYERS).flat_map(|layer| mixed.map(|(name, keep)| (format!("layer.{layer}.{name}"), keep)));
        list.push(("mixed".to_owned(), Policy::new(mixed)));
        list
    }

    /// What a step showed from outside.
    #[derive(Debug, PartialEq)]
    struct Seen {
        ledger: Ledger,
        /// After the forward pass, after the backward pass, after the gradients were dropped.
        live: [Bytes; 3],
        peaks: [Bytes; 2],
        timeline: Vec<(Phase, String, Bytes)>,
    }

    fn step(encoder: &Encoder, policy: &Policy, memory: &Arc<NormMemory>) -> Seen {
        let meter = encoder.device.meter();
        let mode = training(Key::new(3), true, policy.clone(), Some(memory.clone()));
        let mut tape = Tape::new(&encoder.params, mode).with_timeline();
        let mut grads = Grads::new(&encoder.params);
        meter.reset_peak();
        let loss = encoder.loss(&mut tape, &encoder.batch());
        let ledger = tape.ledger();
        let forward = (meter.live(), meter.peak());
        meter.reset_peak();
        tape.backward(loss, 1.0, &mut grads).unwrap();
        let peak = meter.peak();
        memory.settle();
        let backward = (meter.live(), peak);
        let timeline = std::mem::take(&mut grads.timeline).into_iter().map(|m| (m.phase, m.at, m.live)).collect();
        grads.clear();
        Seen { ledger, live: [forward.0, backward.0, meter.live()], peaks: [forward.1, backward.1], timeline }
    }

    #[test]
    fn ledger_equals_meter_and_the_shape_only_device_equals_the_real_one() {
        for dtype in [DType::F32, DType::F64] {
            for frozen in [&[][..], &["words", "positions"], &["layer.0.", "embeddings", "words", "positions"]] {
                for (name, policy) in policies() {
                    let run = |device: &Device| {
                        let mut encoder = Encoder::new(device, dtype);
                        for (_, p) in encoder.params.iter_mut() {
                            p.trainable = !frozen.iter().any(|f| p.name.starts_with(f));
                        }
                        let memory = encoder.memory();
                        (0..3).map(|_| step(&encoder, &policy, &memory)).collect::<Vec<_>>()
                    };
                    let real = run(&Device::cpu());
                    for seen in &real {
                        let [forward, backward, end] = seen.live;
                        assert_eq!(seen.ledger.total(), forward.kept, "{name}");
                        assert_eq!(
                            forward.workspace,
                            dtype.size(),
                            "{name}: the loss is all that lives beside kept bytes"
                        );
                        assert_eq!((backward.kept, backward.workspace), (0, 0), "{name}");
                        assert_eq!((end.gradients, end.weights), (0, forward.weights), "{name}");
                    }
                    let first = &real[0];
                    assert!(real.iter().all(|seen| seen == first), "{name}: every step needs the same memory");
                    let meta = run(&Device::meta(rayon::current_num_threads()));
                    assert_eq!(real, meta, "{name} {frozen:?}");
                }
            }
        }
    }

    #[test]
    fn a_storage_is_counted_once() {
        let encoder = Encoder::new(&Device::cpu(), DType::F32);
        let seen = step(&encoder, &Policy::exact(), &encoder.memory());
        let bytes = |site: &str, what: &str| {
            let entry = seen.ledger.entries.iter().find(|e| e.site == site && e.what == what);
            entry.unwrap_or_else(|| panic!("no {what} at {site}")).bytes
        };
        // one tensor of bounds for both layers; the pooler's output is the tanh's and the classifier's input
        assert_eq!((bytes("layer.0.attention", "bounds"), bytes("layer.1.attention", "bounds")), (16, 0));
        assert_eq!((bytes("pooler.tanh", "output"), bytes("classifier", "input")), (3 * 6 * 4, 0));
        assert_eq!(bytes("layer.0.attention", "q, k, v"), TOKENS * 18 * 4);
        let without_inputs = step(&encoder, &policies()[1].1, &encoder.memory());
        // every linear's input is rebuilt, dropout or not, and q, k, v with no need of the log-sum-exp of two heads
        let saved = LAYERS * TOKENS * 4 * (6 + 6 + 6 + 10 + 18 + 2);
        assert_eq!(seen.ledger.total() - without_inputs.ledger.total(), saved);
    }

    #[test]
    fn frozen_weights_keep_nothing_and_get_no_gradient() {
        let mut encoder = Encoder::new(&Device::cpu(), DType::F32);
        encoder.params.iter_mut().for_each(|(_, p)| p.trainable = p.name == "classifier");
        let head = step(&encoder, &Policy::exact(), &encoder.memory());
        let kept: Vec<_> = head.ledger.entries.iter().map(|e| (e.site.as_str(), e.bytes)).collect();
        assert_eq!(kept, [("classifier", 3 * 6 * 4), ("loss", 3 * 3 * 4)]);
        assert_eq!(head.live[1].gradients, 3 * 6 * 4);
        // a frozen linear passes the gradient on and keeps nothing for itself
        encoder.params.iter_mut().for_each(|(_, p)| p.trainable = p.name == "layer.1.up");
        let one = step(&encoder, &Policy::exact(), &encoder.memory());
        let held = |site: &str| one.ledger.entries.iter().find(|e| e.site == site).map(|e| (e.keep, e.bytes));
        assert_eq!(held("layer.1.up"), Some((Form::Exact, TOKENS * 6 * 4)));
        assert_eq!(held("layer.1.down"), Some((Form::Nothing, 0)));
        assert!(held("layer.1.out").is_none() && held("layer.1.norm1").is_none());
        assert_eq!(one.live[1].gradients, 10 * 6 * 4);
        encoder.params.iter_mut().for_each(|(_, p)| p.trainable = false);
        let none = step(&encoder, &Policy::exact(), &encoder.memory());
        assert!(none.ledger.entries.is_empty() && none.live[1].gradients == 0 && none.live[0].kept == 0);
    }

    #[test]
    fn gradients_of_the_whole_encoder() {
        let device = Device::cpu();
        let mut encoder = Encoder::new(&device, DType::F64);
        let batch = encoder.batch();
        let mut params = std::mem::replace(&mut encoder.params, Params::new(&device, DType::F64));
        for policy in [0, 1].map(|i| policies()[i].1.clone()) {
            let mode = training(Key::new(4), true, policy, None);
            check_gradients(&mut params, &mode, 200, |tape| encoder.loss(tape, &batch)).unwrap();
            check_precision(&mut params, &mode, 200, |tape| encoder.loss(tape, &batch)).unwrap();
        }
    }

    #[test]
    fn the_first_site_that_is_not_finite_is_named() {
        let device = Device::cpu();
        for (bad, site) in [("layer.1.up", "layer.1.up"), ("words", "embeddings"), ("", "")] {
            let mut encoder = Encoder::new(&device, DType::F32);
            for (_, p) in encoder.params.iter_mut().filter(|(_, p)| p.name == bad) {
                p.value.dense_mut().write_range(0, &[f32::INFINITY]);
            }
            let mut tape = Tape::new(&encoder.params, Mode::Inference).with_check();
            encoder.loss(&mut tape, &encoder.batch());
            assert_eq!(tape.not_finite(), Some(site).filter(|s| !s.is_empty()));
            assert!(tape.ledger().entries.is_empty());
        }
    }

    /// Sampling by norms that nobody remembers would be sampling by none.
    #[test]
    fn remembered_norms_need_a_memory() {
        let device = Device::cpu();
        let (params, [w]) = random_params(&device, DType::F64, [("w", &[2, 3])]);
        let pass = |norms, ratio, memory: bool| {
            let keep = Keep::Rows(Sampling { estimator: Estimator::Pps, ratio, norms, uniform: 0.1 });
            let memory = memory.then(|| {
                Arc::new(NormMemory::new(&device, &[("w".into(), RowsOf::Tokens)], 4, CachePlace::Memory).unwrap())
            });
            let policy = Policy::everywhere(keep);
            let mut tape = Tape::new(&params, training(Key::new(1), false, policy, memory.clone()));
            memory.iter().for_each(|memory| {
                let positions = (0..4).map(|p| (p, false)).collect();
                let tokens = Places { tokens: None, positions };
                memory.begin(BatchPlaces { tokens, targets: Places::default(), weight: 1.0 });
            });
            let x = tape.constant(crate::testing::random(&device, DType::F64, Key::new(2), &[4, 3]));
            let y = tape.linear("w", &x, w, None);
            tape.backward(y, 1.0, &mut Grads::new(&params))
        };
        for norms in [NormSource::Cached, NormSource::Running] {
            let error = pass(norms, 0.5, false).unwrap_err().to_string();
            assert!(
                error.starts_with("the policy draws rows by cached or running norms, and there is no memory"),
                "{error}"
            );
            assert!(pass(norms, 0.5, true).is_ok() && pass(norms, 1.0, false).is_ok(), "{norms:?}");
        }
        for norms in [NormSource::Current, NormSource::Uniform] {
            assert!(pass(norms, 0.5, false).is_ok(), "{norms:?}");
        }
    }

    #[test]
    fn an_output_that_nothing_uses_gets_no_gradient() {
        let device = Device::cpu();
        let (params, [a, b]) = random_params(&device, DType::F64, [("a", &[3, 2]), ("b", &[3, 2])]);
        let mut tape = Tape::new(&params, training(Key::new(1), false, Policy::exact(), None));
        let x = crate::testing::leaf(&mut tape, a);
        let unused = crate::testing::leaf(&mut tape, b);
        tape.tanh("unused", unused);
        let y = tape.tanh("used", x);
        let mut grads = Grads::new(&params);
        tape.backward(y, 1.0, &mut grads).unwrap();
        assert!(grads.of(a).is_some() && grads.of(b).is_none());
        assert_eq!(device.meter().live().kept, 0);
    }

    /// Gradients that are taken as soon as they are final are those that are there at the end, in the order of their last use; no more than an
    /// op's are ever there at once, and weights may change meanwhile. A tied weight is final at its first use.
    #[test]
    fn final_gradients_can_be_taken_on_the_way() {
        for (name, policy) in policies() {
            let mut encoder = Encoder::new(&Device::cpu(), DType::F64);
            let last = encoder.ids.len() - 1;
            // the pooler's weight (6, 6) is also layer 0's output, and layer 1's
            encoder.ids[4 + 2] = encoder.ids[last - 1];
            encoder.ids[4 + 12 + 2] = encoder.ids[last - 1];
            let record = |encoder: &Encoder| {
                let mode = training(Key::new(3), true, policy.clone(), Some(encoder.memory()));
                let mut tape = Tape::new(&encoder.params, mode);
                let loss = encoder.loss(&mut tape, &encoder.batch());
                (tape.into_recorded(), loss)
            };
            let mut all = Grads::new(&encoder.params);
            let (recorded, loss) = record(&encoder);
            recorded.backward(loss, 1.0, &mut all, &mut |_| Ok(())).unwrap();
            let (recorded, loss) = record(&encoder);
            let (mut grads, mut taken, mut most) = (Grads::new(&encoder.params), Vec::new(), 0);
            let params = &mut encoder.params;
            let take = &mut |grads: &mut Grads| {
                most = most.max(grads.params.iter().flatten().count());
                while let Some((id, gradient)) = grads.take_final(params) {
                    assert_eq!(gradient.to_f64(), all.of(id).unwrap().to_f64(), "{name}: {}", params[id].name);
                    params[id].value.dense_mut().write_f64(std::iter::repeat(f64::NAN));
                    taken.push(id);
                }
                Ok(())
            };
            recorded.backward(loss, 1.0, &mut grads, take).unwrap();
            let place = |name: &str| taken.iter().position(|&id| params[id].name == name);
            assert_eq!(taken.len(), params.iter().filter(|(id, _)| all.of(*id).is_some()).count(), "{name}");
            assert!(place("classifier") < place("layer.1.down") && place("layer.1.down") < place("layer.0.down"));
            assert!(place("layer.0.gamma1") < place("pooler") && place("pooler") < place("layer.0.qkv"));
            assert_eq!(most, 3, "{name}: the tied weight's, a linear's and its bias's");
        }
    }
}
