//! Ops that keep less: each one's gradient is that of the numbers that its codes stand for, and what linears draw from rebuilt inputs is
//! unbiased.

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Activation, Class, Coded, DType, Device, Estimator, Format, Stored};

use crate::compress::{GROUP, quantised};
use crate::testing::{check_unbiased, leaf, random_params, rounding, run, training};
use crate::{
    Attend, Bits, Keep, LowRank, NormSource, ParamId, Params, Policy, Rebuild, Sampling, Sequences, Tape, Var,
};

const ALL_BITS: [Bits; 3] = [Bits::Int8, Bits::Int4, Bits::Bf16];

fn policy<const N: usize>(rules: [(&str, Keep); N]) -> Policy {
    let sites = "a act attention b c down gated gelu kv linear low_rank norm out q qkv relu up";
    Policy::by_patterns(&rules, sites.split(' '))
}

fn late(ratio: f32) -> Keep {
    Keep::Rows(Sampling { estimator: Estimator::Pps, ratio, norms: NormSource::Current, uniform: 0.0 })
}

fn decoded(coded: &Coded) -> Vec<f64> {
    let mut x = coded.codes.device().empty(Class::Workspace, coded.scale.dtype(), &[coded.codes.rows(), coded.cols]);
    x.device().clone().kernels().read_rows(&Stored::Coded(coded).into(), None, &mut x);
    x.to_f64()
}

fn with_values(params: &Params, id: ParamId, values: &[f64]) -> Params {
    let mut other = Params::new(params.device(), params.dtype());
    for (_, p) in params.iter() {
        let new = other.add(&p.name, &p.value.shape(), p.decay);
        other[new].value.dense_mut().write_f64(p.value.dense().to_f64());
    }
    other[id].value.dense_mut().write_f64(values.iter().copied());
    other
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| f64::max(m, (a - b).abs()))
}

/// A GELU's gradient at the decoded input, bit for bit; its output is exact.
#[test]
fn an_activation_differentiates_at_what_it_keeps() {
    let device = Device::cpu();
    let apply: [fn(&mut Tape<'_>, Var) -> Var; 3] = [
        |tape, x| tape.activate("act", Activation::Gelu, x),
        |tape, x| tape.activate("act", Activation::GeluTanh, x),
        |tape, x| tape.gated("act", Activation::GeluTanh, x),
    ];
    for (apply, bits) in apply.into_iter().flat_map(|f| ALL_BITS.map(|b| (f, b))) {
        let (params, [x]) = random_params(&device, DType::F64, [("x", &[9, 140])]);
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            apply(tape, x)
        };
        let mode = |keep| training(Key::new(1), false, policy([("act", keep)]), None);
        let kept = quantised(params[x].value.dense(), Format { code: bits.code(), group: GROUP }, None);
        let coarse = run(&params, &mode(Keep::Quantised(bits)), f).unwrap();
        let exact = run(&params, &mode(Keep::Exact), f).unwrap();
        let there = run(&with_values(&params, x, &decoded(&kept)), &mode(Keep::Exact), f).unwrap();
        assert_eq!(coarse.output, exact.output, "{bits:?}");
        assert_eq!(coarse.gradients, there.gradients, "{bits:?}");
        assert_ne!(coarse.gradients, exact.gradients, "{bits:?}");
    }
}

/// Which elements of a ReLU's output are above 0 is kept exactly, and so is the gradient.
#[test]
fn a_relu_in_eight_bits_has_its_exact_gradient() {
    let device = Device::cpu();
    for p in [0.0, 0.3] {
        let (params, [x]) = random_params(&device, DType::F64, [("x", &[9, 140])]);
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.relu("act", x, p)
        };
        let mode = |keep| training(Key::new(1), true, policy([("act", keep)]), None);
        let coarse = run(&params, &mode(Keep::Quantised(Bits::Int8)), f).unwrap();
        assert!(coarse.same_bits(&run(&params, &mode(Keep::Exact), f).unwrap()));
    }
}

/// `dx = r(g − mean g − ẑ·mean(g⊙ẑ))` and `dγ = Σ dy⊙ẑ` with the decoded ẑ.
#[test]
fn a_norm_differentiates_with_what_it_keeps() {
    let device = Device::cpu();
    let (n, d, eps) = (7, 150, 0.1);
    for (bits, centred) in ALL_BITS.into_iter().flat_map(|b| [(b, true), (b, false)]) {
        let shapes: [(&str, &[usize]); 3] = [("x", &[n, d]), ("gamma", &[d]), ("beta", &[d])];
        let (params, [x, g, b]) = random_params(&device, DType::F64, shapes);
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            if centred { tape.layer_norm("norm", &x, g, b, eps) } else { tape.rms_norm("norm", &x, g, eps) }
        };
        let key = Key::new(1);
        let keep = Keep::Quantised(bits);
        let coarse = run(&params, &training(key, false, policy([("norm", keep)]), None), f).unwrap();
        let exact = run(&params, &training(key, false, Policy::exact(), None), f).unwrap();
        assert_eq!(coarse.output, exact.output);
        let x = params[x].value.dense().to_f64();
        let gamma = params[g].value.dense().to_f64();
        let mean = |row: &[f64]| row.iter().sum::<f64>() / d as f64;
        let (mut z, mut r) = (vec![], vec![]);
        for row in x.chunks(d) {
            let m = if centred { mean(row) } else { 0.0 };
            let inverse = 1.0 / (mean(&row.iter().map(|x| (x - m).powi(2)).collect::<Vec<_>>()) + eps).sqrt();
            z.extend(row.iter().map(|x| (x - m) * inverse));
            r.push(inverse);
        }
        let exact_z = device.tensor(Class::Workspace, &[n, d], &z);
        let stream = key.named("norm").named("rounding");
        let z = decoded(&quantised(&exact_z, Format { code: bits.code(), group: GROUP }, Some(stream)));
        let dy: Vec<f64> = (0..n * d).map(|i| Key::new(23).normal(i as u64)).collect();
        let (mut dx, mut dgamma) = (vec![], vec![0.0; d]);
        for ((dy, z), r) in dy.chunks(d).zip(z.chunks(d)).zip(r) {
            let g: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, g)| dy * g).collect();
            let along = mean(&g.iter().zip(z).map(|(g, z)| g * z).collect::<Vec<_>>());
            let m = if centred { mean(&g) } else { 0.0 };
            dx.extend(g.iter().zip(z).map(|(g, z)| r * (g - m - z * along)));
            dgamma.iter_mut().zip(dy.iter().zip(z)).for_each(|(sum, (dy, z))| *sum += dy * z);
        }
        // a code may differ where ẑ, computed in another order, rounds to the other side: none does with this seed
        let bound = rounding(DType::F64, 3 * d) * 10.0;
        assert!(largest_difference(coarse.gradients[0].as_ref().unwrap(), &dx) < bound, "{bits:?} {centred}");
        assert!(largest_difference(coarse.gradients[1].as_ref().unwrap(), &dgamma) < bound, "{bits:?} {centred}");
        assert_eq!(coarse.gradients[2], exact.gradients[2], "dβ does not read ẑ");
    }
}

struct Attention {
    sequences: Sequences,
    others: Sequences,
    attend: Attend,
    cross: bool,
}

fn attentions(device: &Device) -> Vec<Attention> {
    let attend = Attend { dropout: 0.2, ..Attend::new(2, 0.7) };
    let case = |causal, cross| Attention {
        sequences: Sequences::new(device, &[0, 3, 70, 71]),
        others: Sequences::new(device, &[0, 5, 6, 74]),
        attend: Attend { causal, ..attend },
        cross,
    };
    vec![case(false, false), case(true, false), case(false, true)]
}

impl Attention {
    fn run(&self, tape: &mut Tape<'_>, q: Var, kv: Var) -> Var {
        let kv = self.cross.then_some((kv, &self.others));
        tape.attention("attention", &self.attend, (q, &self.sequences), kv)
    }
}

/// The gradient at the decoded q, k and v: the same but for the softmax, which is summed again.
#[test]
fn attention_differentiates_at_what_it_keeps() {
    let device = Device::cpu();
    for (case, bits) in attentions(&device).iter().flat_map(|c| ALL_BITS.map(|b| (c, b))) {
        let columns = if case.cross { 6 } else { 18 };
        let (params, [q, kv]) = random_params(&device, DType::F64, [("q", &[71, columns]), ("kv", &[74, 12])]);
        let f = |tape: &mut Tape<'_>| {
            let (q, kv) = (leaf(tape, q), leaf(tape, kv));
            case.run(tape, q, kv)
        };
        let mode = |keep| training(Key::new(2), true, policy([("attention", keep)]), None);
        let coarse = run(&params, &mode(Keep::Quantised(bits)), f).unwrap();
        assert_eq!(coarse.output, run(&params, &mode(Keep::Exact), f).unwrap().output);
        // a scale a head
        let format = Format { code: bits.code(), group: 3 };
        let at = |id: ParamId| decoded(&quantised(params[id].value.dense(), format, None));
        let there = with_values(&with_values(&params, q, &at(q)), kv, &at(kv));
        let there = run(&there, &mode(Keep::Exact), f).unwrap();
        for (coarse, there) in coarse.gradients.iter().zip(&there.gradients) {
            let (Some(coarse), Some(there)) = (coarse, there) else { continue };
            let largest = there.iter().fold(0.0, |m, x| f64::max(m, x.abs()));
            assert!(largest_difference(coarse, there) <= rounding(DType::F64, 300) * largest, "{bits:?}");
        }
    }
}

/// Output rows that are rebuilt one by one are those of the whole, in any order, several times, or none.
#[test]
fn rebuilt_rows_are_rows_of_the_rebuilt_whole() {
    let device = Device::cpu();
    let same = |name: &str, source: &Arc<dyn Rebuild>, n: usize, tolerance: f64| {
        let whole = source.whole();
        assert_eq!(whole.rows(), n, "{name}");
        for index in [vec![], vec![0], vec![n as u32 - 1, 0, 3, 3], (0..n as u32).collect()] {
            let rows = source.rows(&device.tensor(Class::Workspace, &[index.len()], &index)).to_f64();
            let all = whole.to_f64();
            let d = whole.cols();
            let want: Vec<f64> = index.iter().flat_map(|&i| all[i as usize * d..][..d].to_vec()).collect();
            assert!(largest_difference(&rows, &want) <= tolerance, "{name} {index:?}");
        }
    };
    let source = |y: &Var| y.source.clone().expect("a source");
    for keep in [Keep::Exact, Keep::Quantised(Bits::Int8)] {
        let rules = policy([("*", keep)]);
        let mode = || training(Key::new(3), true, rules.clone(), None);
        let shapes: [(&str, &[usize]); 7] = [
            ("x", &[71, 18]),
            ("gamma", &[18]),
            ("beta", &[18]),
            ("w", &[18, 18]),
            ("a", &[4, 18]),
            ("b1", &[6, 2]),
            ("b2", &[6, 2]),
        ];
        let (params, [x, g, b, w, a, b1, b2]) = random_params(&device, DType::F64, shapes);
        let mut tape = Tape::new(&params, mode());
        let x = leaf(&mut tape, x);
        let y = tape.layer_norm("norm", &x, g, b, 1e-5);
        same("norm", &source(&y), 71, 0.0);
        let y = tape.dropout("dropout", y, 0.3);
        same("dropout", &source(&y), 71, 0.0);
        let z = tape.linear("linear", &y, w, None);
        // another number of rows may take another path through the product
        same("linear", &source(&z), 71, rounding(DType::F64, 18) * 100.0);
        let spec = LowRank { a, b: vec![(b1, 0), (b2, 12)], scale: 0.5, dropout: 0.2 };
        let z = tape.low_rank("low_rank", z, &y, &spec);
        let whole = source(&z).whole().to_f64();
        same("low_rank", &source(&z), 71, rounding(DType::F64, 40) * 100.0);
        if keep == Keep::Exact {
            assert_eq!(whole, z.value.to_f64(), "the same as in the forward pass");
        }
        let u = tape.activate("gelu", Activation::Gelu, z.clone());
        same("gelu", &source(&u), 71, 0.0);
        let u = tape.gated("gated", Activation::GeluTanh, z.clone());
        same("gated", &source(&u), 71, 0.0);
        if keep != Keep::Exact {
            let u = tape.relu("relu", z, 0.1);
            same("relu", &source(&u), 71, 0.0);
        }
        for case in attentions(&device) {
            let columns = if case.cross { 6 } else { 18 };
            let (params, [q, kv]) = random_params(&device, DType::F64, [("q", &[71, columns]), ("kv", &[74, 12])]);
            let mut tape = Tape::new(&params, mode());
            let (q, kv) = (leaf(&mut tape, q), leaf(&mut tape, kv));
            let out = case.run(&mut tape, q, kv);
            same("attention", &source(&out), 71, rounding(DType::F64, 80) * 100.0);
            if keep == Keep::Exact {
                assert_eq!(source(&out).whole().to_f64(), out.value.to_f64(), "the same as in the forward pass");
            }
        }
    }
}

/// dW of linears behind a norm and a ReLU that are kept in codes with stochastic rounding, rows drawn late from what is rebuilt: on average the
/// exact one. Behind attention it is that of the decoded q, k and v.
#[test]
fn late_draws_of_rebuilt_inputs_are_unbiased() {
    let device = Device::cpu();
    let (n, d, f) = (14, 5, 7);
    let shapes: [(&str, &[usize]); 7] = [
        ("x", &[n, d]),
        ("gamma", &[d]),
        ("beta", &[d]),
        ("up", &[f, d]),
        ("down", &[3, f]),
        ("qkv", &[n, 6]),
        ("out", &[2, 2]),
    ];
    let (params, [x, g, b, up, down, qkv, out]) = random_params(&device, DType::F64, shapes);
    let sequences = Sequences::new(&device, &[0, 9, n as u32]);
    let attend = Attend::new(1, 0.7);
    let feed_forward = |tape: &mut Tape<'_>| {
        let x = leaf(tape, x);
        let y = tape.layer_norm("norm", &x, g, b, 1e-5);
        let u = tape.linear("up", &y, up, None);
        let u = tape.relu("relu", u, 0.0);
        tape.linear("down", &u, down, None)
    };
    let attention = |tape: &mut Tape<'_>| {
        let qkv = leaf(tape, qkv);
        let o = tape.attention("attention", &attend, (qkv, &sequences), None);
        tape.linear("out", &o, out, None)
    };
    let gradient = |id: ParamId, policy: Policy, trial: u64, f: &dyn Fn(&mut Tape<'_>) -> Var| {
        let mode = training(Key::new(9).child(trial), false, policy, None);
        run(&params, &mode, f).map(|r| r.gradients[id.0].clone().unwrap())
    };
    let int8 = Keep::Quantised(Bits::Int8);
    let decoded = policy([("attention", int8), ("*", Keep::Nothing)]);
    type Case<'a> = (&'a str, ParamId, &'a dyn Fn(&mut Tape<'_>) -> Var, Policy);
    let cases: [Case<'_>; 3] = [
        ("up", up, &feed_forward, Policy::exact()),
        ("down", down, &feed_forward, Policy::exact()),
        ("out", out, &attention, decoded),
    ];
    for (name, id, f, reference) in cases {
        let exact = gradient(id, reference, 0, f).unwrap();
        for ratio in [0.1, 0.5] {
            let lean = || policy([("norm", int8), ("relu", int8), ("attention", int8), ("*", late(ratio))]);
            check_unbiased(&exact, 4000, |t| gradient(id, lean(), t, f))
                .unwrap_or_else(|e| panic!("{name} {ratio}: {e}"));
        }
    }
}
