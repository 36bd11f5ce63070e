//! Attention: types, heads in groups, masks, tails, one query; the large ones.

use crate::case::{Buffer, Case, Sizes, dense_strides};
use kiln_ir::{BinaryFn, CompareFn, DType};
use kiln_kernels::attention::AttentionSpec;
use kiln_kernels::{ExprId, Exprs, Index, KernelSpec, Size};
use serde_json::json;

/// What hides keys.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask {
    None,
    /// Keys after the query, when both end together.
    Causal,
    /// Causal, and only this many keys.
    Window(i64),
    /// `[batch, key]`, added.
    Padding,
    /// `[batch, head, query, key]`, added.
    Bias,
    /// `[query, key]` bools.
    Keep,
}

#[derive(Clone, Debug)]
struct Attention {
    dtype: DType,
    batch: i64,
    heads: i64,
    /// Query heads of a key head.
    group: i64,
    queries: i64,
    keys: i64,
    features: i64,
    values: i64,
    mask: Mask,
    /// `[batch, seq, head, feature]` in memory.
    seq_first: bool,
    open: bool,
}

impl Attention {
    fn new(dtype: DType, [queries, keys]: [i64; 2], features: i64, mask: Mask) -> Attention {
        Attention {
            dtype,
            batch: 1,
            heads: 2,
            group: 1,
            queries,
            keys,
            features,
            values: features,
            mask,
            seq_first: false,
            open: false,
        }
    }

    fn name(&self) -> String {
        let mask = format!("{:?}", self.mask).to_lowercase();
        let mask = mask.replace(['(', ')'], "");
        let mut name = format!("attention_{}_{mask}_", self.dtype);
        name += &format!("{}x{}", self.batch, self.heads);
        name += &format!("_{}x{}x{}", self.queries, self.keys, self.features);
        for (is, what) in [
            (self.group > 1, "grouped"),
            (self.values != self.features, "values"),
            (self.seq_first, "seq"),
            (self.open, "open"),
        ] {
            name += &if is {
                format!("_{what}")
            } else {
                String::new()
            };
        }
        name
    }

    /// `[batch, head, seq, feature]`, as it lies.
    fn buffer(&self, role: &'static str, heads: i64, seq: i64, width: i64) -> Buffer {
        let shape = [self.batch, heads, seq, width];
        let strides = match self.seq_first {
            true => vec![seq * heads * width, width, heads * width, 1],
            false => dense_strides(&shape),
        };
        Buffer::strided(role, self.dtype, &shape, &strides)
    }

    /// The mask's buffer, and the strides that the score reads it by.
    fn mask_buffer(&self) -> Option<(Buffer, Vec<Size>)> {
        let (b, h, q, k) = (self.batch, self.heads, self.queries, self.keys);
        let f = DType::F32;
        let c = Size::Const;
        match self.mask {
            Mask::None | Mask::Causal | Mask::Window(_) => None,
            Mask::Padding => Some((
                Buffer::dense("mask", f, &[b, k]),
                vec![c(k), Size::ZERO, Size::ZERO, Size::ONE],
            )),
            Mask::Bias => Some((
                Buffer::dense("mask", f, &[b, h, q, k]),
                vec![c(h * q * k), c(q * k), c(k), Size::ONE],
            )),
            Mask::Keep => Some((
                Buffer::dense("mask", DType::Bool, &[q, k]),
                vec![Size::ZERO, Size::ZERO, c(k), Size::ONE],
            )),
        }
    }

    fn score(&self, e: &mut Exprs, mask: Option<&(Buffer, Vec<Size>)>) -> ExprId {
        let raw = e.acc(0, DType::F32).unwrap();
        let scale = e.f32(self.scale() as f32);
        let mut score = e.binary(BinaryFn::Mul, raw, scale).unwrap();
        let hide = e.f32(f32::NEG_INFINITY);
        if let Some((buffer, strides)) = mask {
            let index = Index::strided(strides.iter().copied());
            let x = e.load(3, buffer.dtype, index).unwrap();
            return match self.mask {
                Mask::Keep => e.select(x, score, hide).unwrap(),
                _ => e.binary(BinaryFn::Add, score, x).unwrap(),
            };
        }
        if self.mask == Mask::None {
            return score;
        }
        let (i, j) = (e.axis(2), e.axis(3));
        let after = e.i64(self.keys - self.queries);
        let last = e.binary(BinaryFn::Add, i, after).unwrap();
        let seen = e.compare(CompareFn::Le, j, last).unwrap();
        score = e.select(seen, score, hide).unwrap();
        if let Mask::Window(width) = self.mask {
            let width = e.i64(width);
            let first = e.binary(BinaryFn::Sub, last, width).unwrap();
            let near = e.compare(CompareFn::Gt, j, first).unwrap();
            score = e.select(near, score, hide).unwrap();
        }
        score
    }

    fn scale(&self) -> f64 {
        1.0 / (self.features as f64).sqrt()
    }

    fn case(&self) -> Case {
        let key_heads = self.heads / self.group;
        let mut buffers = vec![
            self.buffer("q", self.heads, self.queries, self.features),
            self.buffer("k", key_heads, self.keys, self.features),
            self.buffer("v", key_heads, self.keys, self.values),
        ];
        let mask = self.mask_buffer();
        let mut e = Exprs::new();
        let score = self.score(&mut e, mask.as_ref());
        buffers.extend(mask.map(|(b, _)| b));
        buffers.push(self.buffer("out", self.heads, self.queries, self.values));
        let mut sizes = Sizes {
            open: self.open,
            ..Sizes::default()
        };
        let last = buffers.len() - 1;
        let [q, k, v, out] = [0, 1, 2, last].map(|i| match &buffers[i].layout {
            crate::case::Layout::Strides(s) => {
                let s = sizes.strides(s);
                [s[0], s[1], s[2], s[3]]
            }
            other => panic!("attention has no {other:?}"),
        });
        let counts = [self.batch, self.heads, self.group, self.queries, self.keys];
        let [batch, heads, group, queries, keys] = counts.map(|n| sizes.size(n));
        let spec = AttentionSpec {
            exprs: e,
            args: buffers.iter().map(|b| b.dtype).collect(),
            params: sizes.params.len() as u16,
            batch,
            heads,
            group,
            queries,
            keys,
            features: self.features,
            values: self.values,
            q,
            k,
            v,
            out,
            score,
            block: if self.queries <= 16 { 16 } else { 64 },
        };
        let (mask, window) = match self.mask {
            Mask::Window(width) => ("Window".to_string(), width),
            other => (format!("{other:?}"), 0),
        };
        let op = json!({"kind": "attention", "scale": self.scale() as f32 as f64, "mask": mask,
            "window": window, "group": self.group});
        let name = (self.name(), "attention");
        Case::new(name, op, KernelSpec::Attention(spec), buffers, sizes.params)
    }

    /// To be timed; of causal attention half the products count.
    fn timed(&self) -> Case {
        let pairs = self.batch * self.heads * self.queries * self.keys;
        let all = 2 * pairs * (self.features + self.values);
        self.case().timed(if self.mask == Mask::Causal {
            all / 2
        } else {
            all
        })
    }
}

/// Attention to check, then that to time.
pub fn cases() -> Vec<Case> {
    use DType::{BF16, F16, F32};
    let mut all = vec![];
    for dtype in [F32, BF16, F16] {
        all.push(Attention::new(dtype, [70, 83], 64, Mask::None));
        all.push(Attention::new(dtype, [70, 83], 32, Mask::Causal));
        all.push(Attention {
            heads: 4,
            group: 2,
            seq_first: true,
            ..Attention::new(dtype, [33, 65], 128, Mask::Causal)
        });
        all.push(Attention::new(dtype, [1, 130], 64, Mask::None));
    }
    all.push(Attention::new(BF16, [200, 300], 128, Mask::Causal));
    // Few queries over several parts of the keys.
    all.push(Attention {
        heads: 4,
        group: 2,
        ..Attention::new(BF16, [1, 1100], 128, Mask::None)
    });
    all.push(Attention::new(F16, [5, 700], 64, Mask::Keep));
    for dtype in [F32, BF16] {
        for mask in [Mask::Window(9), Mask::Padding, Mask::Bias, Mask::Keep] {
            all.push(Attention {
                batch: 2,
                open: mask == Mask::Bias,
                ..Attention::new(dtype, [20, 70], 32, mask)
            });
        }
        all.push(Attention {
            values: 40,
            ..Attention::new(dtype, [17, 64], 20, Mask::None)
        });
    }
    let mut cases: Vec<Case> = all.iter().map(Attention::case).collect();
    for (length, features, mask) in [
        (2048, 64, Mask::None),
        (4096, 128, Mask::None),
        (4096, 128, Mask::Causal),
        (4096, 256, Mask::Causal),
        (8192, 64, Mask::Causal),
        (16384, 128, Mask::None),
        (16384, 128, Mask::Causal),
    ] {
        // 16384 tokens and 2048 features each, as such measurements are made.
        let timed = Attention {
            batch: 16384 / length,
            heads: 2048 / features,
            ..Attention::new(BF16, [length, length], features, mask)
        };
        cases.push(timed.timed());
    }
    let decoded = Attention {
        heads: 32,
        ..Attention::new(BF16, [1, 16384], 128, Mask::None)
    };
    cases.push(decoded.timed());
    // Heads that share keys, as in models of text: what they read, and what they write.
    let text = |batch, [queries, keys]: [i64; 2], mask| Attention {
        batch,
        heads: 32,
        group: 4,
        seq_first: true,
        ..Attention::new(BF16, [queries, keys], 128, mask)
    };
    cases.push(text(2, [4096, 4096], Mask::Causal).timed());
    cases.push(text(8, [1, 8192], Mask::None).timed());
    cases
}
