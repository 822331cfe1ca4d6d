//! Choosing rows: draw probabilities and the estimators (docs/wta-crs.md has the derivations).
//!
//! Probabilities are summed in f64, rows in order, by one thread: n additions are nothing beside the product they replace.

use crate::certain::certain_rows;
use crate::dtype::Float;
use crate::kernels::Estimator;
use crate::rng::Key;

pub(super) fn importance<T: Float>(h: &[T], dz: Option<&[T]>, uniform: f64, p: &mut [T]) {
    let n = h.len();
    let weight = |i: usize| h[i].f64() * dz.map_or(1.0, |dz| dz[i].f64());
    let total: f64 = (0..n).map(weight).sum();
    let floor = uniform / n as f64;
    if total > 0.0 && total.is_finite() {
        let share = (1.0 - uniform) / total;
        p.iter_mut().enumerate().for_each(|(i, p)| *p = T::of(weight(i) * share + floor));
    } else {
        p.fill(T::of(1.0 / n as f64));
    }
}

pub(super) fn sample<T: Float>(estimator: Estimator, key: Key, p: &[T], index: &mut [u32], scale: &mut [T]) {
    let p: Vec<f64> = p.iter().map(|p| p.f64()).collect();
    let drawn = match estimator {
        // all rows are the exact product
        _ if index.len() == p.len() => (0..p.len()).map(|i| (i, 1.0)).collect(),
        Estimator::TopK => top(&p, index.len()).into_iter().map(|i| (i, 1.0)).collect(),
        Estimator::Crs => with_replacement(key, &p, &(0..p.len()).collect::<Vec<_>>(), index.len(), 1.0),
        Estimator::Wta => winner_takes_all(key, &p, index.len()),
        Estimator::Pps => systematic(key.uniform(0), &inclusion(&p, index.len())),
    };
    index.fill(0);
    scale.fill(T::ZERO);
    for ((index, scale), (i, weight)) in index.iter_mut().zip(scale).zip(drawn) {
        *index = i as u32;
        *scale = T::of(weight);
    }
}

/// For each row of `columns` numbers the first of the largest.
pub(super) fn largest<T: Float>(x: &[T], columns: usize, index: &mut [u32]) {
    let of = |row: &[T]| (1..columns).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32;
    index.iter_mut().zip(x.chunks_exact(columns)).for_each(|(index, row)| *index = of(row));
}

/// Rows by falling probability; equal ones in order.
fn by_size(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    order
}

/// The k largest, in row order.
fn top(p: &[f64], k: usize) -> Vec<usize> {
    let mut rows = by_size(p);
    rows.truncate(k);
    rows.sort_unstable();
    rows
}

/// `draws` draws from `rows` (ascending) in proportion to p. A row drawn c times weighs c·Σp/(draws·p_i)·`mass`/Σp, where
/// `mass` is the share of the whole that these rows stand for: their estimate is Σ over the draws of mass·x_i/(draws·p_i/Σp).
fn with_replacement(key: Key, p: &[f64], rows: &[usize], draws: usize, mass: f64) -> Vec<(usize, f64)> {
    let total: f64 = rows.iter().map(|&i| p[i]).sum();
    if draws == 0 || total <= 0.0 {
        return Vec::new();
    }
    let mut points: Vec<f64> = (0..draws as u64).map(|c| key.uniform(c) * total).collect();
    points.sort_unstable_by(f64::total_cmp);
    let mut points = points.into_iter().peekable();
    let (mut drawn, mut sum) = (Vec::new(), 0.0);
    let last = rows.iter().rposition(|&i| p[i] > 0.0);
    for (place, &i) in rows.iter().enumerate() {
        sum += p[i];
        let mut count = 0;
        // the last row takes what rounding leaves above the running sum
        while points.next_if(|&u| u < sum || Some(place) == last).is_some() {
            count += 1;
        }
        if count > 0 {
            drawn.push((i, f64::from(count) * mass * total / (draws as f64 * p[i])));
        }
    }
    drawn
}

/// The paper's estimator: the set C of largest p for certain, k−|C| draws from the rest; |C| minimises
/// (1−q_C)/(k−|C|), the factor of the variance bound (Liu et al. 2023, eq. 7).
fn winner_takes_all(key: Key, p: &[f64], k: usize) -> Vec<(usize, f64)> {
    let order = by_size(p);
    // what is outside C, summed from the small end, so that it does not cancel
    let mut outside = vec![0.0; p.len() + 1];
    for c in (0..p.len()).rev() {
        outside[c] = outside[c + 1] + p[order[c]];
    }
    let certain = certain_rows(k, |c| outside[c]);
    let mut rest = order[certain..].to_vec();
    rest.sort_unstable();
    let mut drawn: Vec<(usize, f64)> = order[..certain].iter().map(|&i| (i, 1.0)).collect();
    // each draw weighs (1−q_C)/((k−|C|)·p_i): with p renormalised on the rest, the mass is 1
    drawn.extend(with_replacement(key, p, &rest, k - certain, 1.0));
    drawn.sort_unstable_by_key(|&(i, _)| i);
    drawn
}

/// π_i = min(1, c·p_i) with Σπ = k, or all rows with p > 0 if those are fewer than k.
fn inclusion(p: &[f64], k: usize) -> Vec<f64> {
    let mut pi = vec![0.0; p.len()];
    let mut open: Vec<usize> = (0..p.len()).filter(|&i| p[i] > 0.0).collect();
    if open.len() <= k {
        open.iter().for_each(|&i| pi[i] = 1.0);
        return pi;
    }
    let mut places = k as f64;
    // rows whose share reaches a whole place become certain; that raises the others' shares, until none does
    loop {
        let total: f64 = open.iter().map(|&i| p[i]).sum();
        let c = places / total;
        let before = open.len();
        open.retain(|&i| {
            let certain = c * p[i] >= 1.0;
            if certain {
                pi[i] = 1.0;
                places -= 1.0;
            } else {
                pi[i] = c * p[i];
            }
            !certain
        });
        if open.len() == before || open.is_empty() {
            return pi;
        }
    }
}

/// Systematic draw (Madow 1949): row i is in if the running sum of π passes a point of the grid u, u+1, … there.
fn systematic(u: f64, pi: &[f64]) -> Vec<(usize, f64)> {
    let total = pi.iter().sum::<f64>();
    // rounding may leave the last sum just beside a whole number, which it is by construction
    let (total, last) = (total.round(), pi.iter().rposition(|&x| x > 0.0));
    let (mut drawn, mut sum, mut next) = (Vec::new(), 0.0, u);
    for (i, &x) in pi.iter().enumerate().filter(|&(_, &x)| x > 0.0) {
        sum = if Some(i) == last { total } else { sum + x };
        if x >= 1.0 || sum > next {
            drawn.push((i, 1.0 / x));
            next += 1.0;
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases() -> Vec<(&'static str, Vec<f64>)> {
        let heavy: Vec<f64> = (1..=40).map(|i| f64::from(i).powi(-2)).collect();
        let mut dominant = vec![1e-3; 30];
        dominant[7] = 1.0;
        let mut zeros = heavy.clone();
        zeros[3] = 0.0;
        zeros[20..25].fill(0.0);
        let cases = [
            ("heavy-tailed", heavy),
            ("uniform", (0..40).map(|i| Key::new(5).uniform(i)).collect()),
            ("all equal", vec![1.0; 25]),
            ("one dominant row", dominant),
            ("zero rows", zeros),
            ("few non-zero", vec![0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ];
        cases.into_iter().map(|(name, p)| (name, p.iter().map(|x| x / p.iter().sum::<f64>()).collect())).collect()
    }

    /// E[weight of row i] = 1 for every row that has a probability, in every regime.
    #[test]
    fn every_row_weighs_one_on_average() {
        let trials = 40_000_u64;
        for (name, p) in cases() {
            for k in [1, 2, 8, p.len() - 1] {
                for estimator in [Estimator::Crs, Estimator::Wta, Estimator::Pps] {
                    let (mut index, mut scale) = (vec![0; k], vec![0.0; k]);
                    let mut moments = vec![(0.0, 0.0); p.len()];
                    for t in 0..trials {
                        sample(estimator, Key::new(11).child(t), &p, &mut index, &mut scale);
                        for (&i, &w) in index.iter().zip(&scale) {
                            moments[i as usize].0 += w;
                            moments[i as usize].1 += w * w;
                        }
                    }
                    for (i, &(sum, squares)) in moments.iter().enumerate().filter(|&(i, _)| p[i] > 0.0) {
                        let t = trials as f64;
                        let mean = sum / t;
                        // a row too rare for the normal approximation says nothing
                        let hits = t * k as f64 * p[i];
                        if hits < 50.0 {
                            continue;
                        }
                        let se = ((squares / t - mean * mean).max(0.0) / t).sqrt();
                        assert!(
                            (mean - 1.0).abs() <= 5.0 * se + 1e-9,
                            "{estimator:?} k={k} {name} row {i}: {mean} ± {se}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn pps_fills_its_places_and_sums_its_probabilities() {
        for (name, p) in cases() {
            let positive = p.iter().filter(|&&x| x > 0.0).count();
            for k in 1..p.len() {
                let pi = inclusion(&p, k);
                let want = k.min(positive);
                assert!((pi.iter().sum::<f64>() - want as f64).abs() < 1e-9, "{name} k={k}");
                assert!(pi.iter().zip(&p).all(|(&pi, &p)| (pi > 0.0) == (p > 0.0) && pi <= 1.0));
                for t in 0..200 {
                    let drawn = systematic(Key::new(2).uniform(t), &pi);
                    assert_eq!(drawn.len(), want, "{name} k={k}");
                    assert!(drawn.windows(2).all(|w| w[0].0 < w[1].0), "distinct, in order");
                }
            }
        }
    }

    #[test]
    fn wta_chooses_the_best_number_of_certain_rows() {
        for (name, p) in cases() {
            for k in 1..p.len() {
                let drawn = winner_takes_all(Key::new(1), &p, k);
                let order = by_size(&p);
                let factor = |c: usize| order[c..].iter().map(|&i| p[i]).sum::<f64>() / (k - c) as f64;
                let best = (0..k).map(factor).fold(f64::INFINITY, f64::min);
                let certain = (0..k).find(|&c| factor(c) <= best * (1.0 + 1e-12)).unwrap();
                for i in &order[..certain] {
                    assert!(drawn.iter().any(|&(j, w)| j == *i && w >= 1.0 - 1e-9), "{name} k={k} row {i}");
                }
                assert!(drawn.len() <= k);
            }
        }
    }

    /// p = (0.7, 0.3), k = 1: topk always takes row 0, so its estimate misses row 1 for good.
    #[test]
    fn topk_is_biased() {
        let (mut index, mut scale) = ([9], [0.0]);
        for t in 0..100 {
            sample(Estimator::TopK, Key::new(t), &[0.7, 0.3], &mut index, &mut scale);
            assert_eq!((index, scale), ([0], [1.0]));
        }
    }

    #[test]
    fn probabilities_sum_to_one_whatever_the_norms() {
        let mut p = vec![0.0_f64; 4];
        importance(&[1.0, 2.0, 0.0, 1.0], Some(&[1.0, 3.0, 5.0, 0.0]), 0.1, &mut p);
        let want = [0.9 / 7.0 + 0.025, 0.9 * 6.0 / 7.0 + 0.025, 0.025, 0.025];
        assert!(p.iter().zip(want).all(|(p, w)| (p - w).abs() < 1e-15));
        for norms in [[0.0; 4], [f64::NAN; 4], [f64::INFINITY; 4]] {
            importance(&norms, None, 0.0, &mut p);
            assert_eq!(p, [0.25; 4]);
        }
    }
}
