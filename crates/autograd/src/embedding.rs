//! Embedding lookups, summed: `y_i = Σ_t table_t[ids_t,i]`. Keeps the ids.

use colrow_tensor::{Class, Result, Tensor};

use crate::kept::Kept;
use crate::param::{Handle, ParamId};
use crate::tape::{Grads, Op, Tape, Var};

struct Embedding {
    /// Ids (n) and the table that they look up, for learned tables.
    lookups: Vec<(Kept, Handle)>,
}

impl Tape<'_> {
    /// The sum of the rows that each pair of ids (n, u32) and table (v, d) names; every id must be below its table's length.
    pub fn embedding(&mut self, site: &str, lookups: &[(&Tensor, ParamId)]) -> Var {
        let lookups: Vec<_> = lookups.iter().map(|(ids, id)| (*ids, self.handle(*id))).collect();
        let device = self.device().clone();
        let (ids, table) = &lookups[0];
        let mut y = device.empty(Class::Workspace, table.value.dtype(), &[ids.len(), table.value.cols()]);
        for (i, (ids, table)) in lookups.iter().enumerate() {
            device.kernels().embed(ids, &table.value.stored(), i > 0, &mut y);
        }
        let learned: Vec<_> = lookups.into_iter().filter(|(_, table)| table.trainable).collect();
        let hold = |(ids, table): (&Tensor, Handle)| (Kept::Exact(ids.clone()), table);
        self.output(site, y, !learned.is_empty(), || Embedding { lookups: learned.into_iter().map(hold).collect() })
    }
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        self.lookups.iter().map(|(ids, _)| ("ids", ids)).collect()
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        for (ids, table) in &self.lookups {
            if let Kept::Exact(ids) = ids {
                dy.device().kernels().embed_backward(ids, &dy, grads.param_sum(table));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device};

    use super::*;
    use crate::Policy;
    use crate::testing::{check_gradients, check_precision, random_params, run, training};

    #[test]
    fn gradients_of_summed_tables() {
        let device = Device::cpu();
        let (mut params, [a, b]) = random_params(&device, DType::F64, [("a", &[5, 3]), ("b", &[4, 3])]);
        let ids = |ids: &[u32]| device.tensor(Class::Workspace, &[ids.len()], ids);
        // repeated ids, ids that never occur, one table looked up twice
        let (first, second, third) = (ids(&[4, 0, 4, 4, 1, 0]), ids(&[0, 1, 2, 0, 1, 2]), ids(&[1, 1, 1, 0, 0, 4]));
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let f = |tape: &mut Tape<'_>| tape.embedding("embedding", &[(&first, a), (&second, b), (&third, a)]);
        check_gradients(&mut params, &mode, 3, f).unwrap();
        check_precision(&mut params, &mode, 6, f).unwrap();
        params[a].trainable = false;
        check_gradients(&mut params, &mode, 3, f).unwrap();
        params[b].trainable = false;
        assert!(run(&params, &mode, f).unwrap().gradients.iter().all(Option::is_none));
    }
}
