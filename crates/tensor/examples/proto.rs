use colrow_tensor::*;
#[repr(C)]
struct Ts {
    s: i64,
    n: i64,
}
unsafe extern "C" {
    fn clock_gettime(c: i32, t: *mut Ts) -> i32;
}
fn cpu() -> f64 {
    let mut t = Ts { s: 0, n: 0 };
    unsafe { clock_gettime(2, &mut t) };
    t.s as f64 + t.n as f64 * 1e-9
}
fn main() {
    let (d, e) = (Device::cpu(), Device::cpu_with(Precision::Bf16));
    let rnd = |r: usize, c: usize, s: u64| {
        let k = rng::Key::new(s);
        let v: Vec<f32> = (0..r * c).map(|i| k.normal(i as u64) as f32).collect();
        d.tensor(Class::Workspace, &[r, c], &v)
    };
    let which: Option<usize> = std::env::args().nth(1).map(|x| x.parse().unwrap());
    let shapes = [
        (4096, 768, 2304, false, true),
        (4096, 768, 768, false, true),
        (4096, 768, 3072, false, true),
        (4096, 3072, 768, false, true),
        (4096, 3072, 768, false, false),
        (3072, 4096, 768, true, false),
        (768, 1229, 3072, true, false),
        (64, 768, 3072, false, true),
        (8, 768, 768, false, true),
        (1, 768, 768, false, true),
        (64, 64, 64, false, true),
        (32, 768, 2, false, true),
        (2, 32, 768, true, false),
        (32, 2, 768, false, false),
    ];
    for (si, (m, k, n, ta, tb)) in shapes.into_iter().enumerate() {
        if which.is_some_and(|w| w != si) {
            continue;
        }
        let a = if ta { rnd(k, m, 1) } else { rnd(m, k, 1) };
        let b = if tb { rnd(n, k, 2) } else { rnd(k, n, 2) };
        let mut c = d.zeros(Class::Workspace, DType::F32, &[m, n]);
        let mut res = [f64::MAX; 2];
        let flop = 2. * (m * k * n) as f64;
        let reps = ((1e8 / flop) as usize).clamp(1, 1000);
        let rounds = if which.is_some() { 200 } else { 15 };
        for _ in 0..rounds {
            for (i, f) in [false, true].into_iter().enumerate() {
                let d = if f { &e } else { &d };
                let t = cpu();
                for _ in 0..reps {
                    d.kernels().matmul(&a, ta, &b, tb, 0.0, &mut c);
                }
                res[i] = res[i].min((cpu() - t) / reps as f64);
            }
        }
        println!(
            "{m}x{k}x{n} {ta} {tb}: f32 {:.1} us {:.0} GF, bf16 {:.1} us {:.0} GF",
            res[0] * 1e6,
            flop / res[0] / 1e9,
            res[1] * 1e6,
            flop / res[1] / 1e9
        );
    }
}
