//! The sum of the gradients of a step's shards, in an order that does not depend on who computed which: a fixed tree.
//!
//! Shards 0 and 1 are added, 2 and 3, then those two sums, and so on: sums of 2ʲ shards that begin at multiples of 2ʲ. What is left at the end is
//! added from the last to the first. One process adds up as shards come, with the sums that a binary counter has ones for, and each
//! parameter's by itself as soon as its gradient is final: before shard i there are as many copies of the gradient as i has ones, at most
//! ⌊log₂ V⌋ of V shards, beside the gradients of the few parameters that are not added yet. One or two shards hold one copy, as if they were
//! added in place; 4 hold two, 64 six. Sums that do not depend on any order (integers, or several floats a number) hold 2 to 4 copies of
//! any number of shards, of one too.

use colrow_autograd::{ParamId, Params};
use colrow_tensor::{Class, Tensor};

/// Sums on the way.
#[derive(Debug)]
pub struct Join {
    params: Vec<Column>,
}

/// Those of one parameter.
#[derive(Debug)]
struct Column {
    id: ParamId,
    /// Of more and more shards from the last to the first; none where no shard had a gradient.
    sums: Vec<Option<Tensor>>,
    /// Whether the shard that is under way gave its gradient.
    given: bool,
}

impl Join {
    /// No sums yet.
    pub fn new(params: &Params) -> Self {
        let column = |(id, _)| Column { id, sums: Vec::new(), given: false };
        Self { params: params.iter().map(column).collect() }
    }

    /// Adds shard `number`'s gradient of a parameter, once a shard, shards in order. Gives the whole sum if it is the `last`.
    pub fn add(&mut self, number: usize, last: bool, id: ParamId, gradient: Option<Tensor>) -> Option<Tensor> {
        let Column { sums, given, .. } = &mut self.params[id.index()];
        *given = true;
        let rows = if last { sums.len() } else { number.trailing_ones() as usize };
        let sum = (0..rows).fold(gradient, |sum, _| plus(sums.pop().flatten(), sum));
        if last {
            return sum;
        }
        sums.push(sum);
        None
    }

    /// The parameters that the shard under way gave no gradient of; the next shard begins.
    pub(super) fn without(&mut self) -> Vec<ParamId> {
        let without = self.params.iter().filter(|column| !column.given).map(|column| column.id).collect();
        self.params.iter_mut().for_each(|column| column.given = false);
        without
    }

    /// Stands in for the sums that there are before shard `number`, after the first shard: for plans.
    pub(super) fn skip_to(&mut self, number: usize) {
        for Column { sums, .. } in &mut self.params {
            if let Some(Some(sum)) = sums.first() {
                let more = |_| Some(sum.device().empty(Class::Gradients, sum.dtype(), sum.shape()));
                let more: Vec<_> = (1..number.count_ones()).map(more).collect();
                sums.extend(more);
            }
        }
    }
}

fn plus(left: Option<Tensor>, right: Option<Tensor>) -> Option<Tensor> {
    match (left, right) {
        (Some(mut left), Some(right)) => {
            let device = left.device().clone();
            device.kernels().add(&right, &mut left);
            Some(left)
        }
        (left, right) => left.or(right),
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device};

    use super::*;

    /// The tree's sum of the numbers of shards `from..to`, both ends whole subtrees.
    fn tree(numbers: &[Option<f32>]) -> Option<f32> {
        match numbers {
            [] => None,
            [one] => *one,
            several => {
                let half = several.len().next_power_of_two() / 2;
                match (tree(&several[..half]), tree(&several[half..])) {
                    (Some(a), Some(b)) => Some(a + b),
                    (a, b) => a.or(b),
                }
            }
        }
    }

    #[test]
    fn shards_are_added_as_the_tree_says_with_as_many_sums_as_its_path_has() {
        let device = Device::cpu();
        for shards in 1..=40 {
            let mut params = Params::new(&device, DType::F32);
            let id = params.add("w", &[1], false);
            let other = params.add("never learned", &[1], false);
            let mut join = Join::new(&params);
            // 24 bits that a different order of sums would round otherwise; some shards without a gradient
            let number = |i: usize| (i % 7 != 3).then(|| (Key::new(1).normal(i as u64) * 1e3) as f32);
            let numbers: Vec<_> = (0..shards).map(number).collect();
            let mut most = 0;
            for (i, &x) in numbers.iter().enumerate() {
                most = most.max(device.meter().live().gradients / 4);
                let last = i + 1 == shards;
                let gradient = x.map(|x| device.tensor(Class::Gradients, &[1], &[x]));
                let mut sum = match gradient {
                    Some(gradient) => join.add(i, last, id, Some(gradient)),
                    None => None,
                };
                for id in join.without() {
                    sum = sum.or(join.add(i, last, id, None));
                }
                join.without();
                assert_eq!(sum.map(|sum| sum.to_f64()[0] as f32), if last { tree(&numbers) } else { None }, "{shards}");
            }
            assert!(most <= shards.ilog2() as usize, "{shards} shards held {most} sums");
            assert!(params.iter().any(|(id, _)| id == other));
        }
    }
}
