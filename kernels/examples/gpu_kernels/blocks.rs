//! Products with weights of a few bits, quantized in blocks: every width and type, tails,
//! few rows and many; the large ones.

use crate::case::{Buffer, Case, Sizes};
use kiln_ir::{BinaryFn, DType};
use kiln_kernels::matmul::{Blocks, Columns, MatMulSpec};
use kiln_kernels::{Exprs, Index, KernelSpec, Size};
use serde_json::json;

struct Product {
    dtype: DType,
    scales: DType,
    bits: i64,
    size: i64,
    zeros: bool,
    mnk: [i64; 3],
}

impl Product {
    fn case(&self) -> Case {
        let [m, n, k] = self.mnk;
        let count = (k + self.size - 1) / self.size;
        let (t, s) = (self.dtype, self.scales);
        let mut buffers = vec![
            Buffer::dense("a", t, &[m, k]),
            Buffer::dense("q", DType::U8, &[n, count * self.size * self.bits / 8]),
            Buffer::dense("s", s, &[n, count]),
        ];
        if self.zeros {
            buffers.push(Buffer::dense("z", DType::U8, &[n, count]));
        }
        let mut e = Exprs::new();
        let sum = e.acc(0, DType::F32).unwrap();
        let bias = Index::strided(vec![Size::ZERO, Size::ONE]);
        let bias = e.load(buffers.len() as u16, DType::F32, bias).unwrap();
        buffers.push(Buffer::dense("bias", DType::F32, &[n]));
        let value = e.binary(BinaryFn::Add, sum, bias).unwrap();
        let value = e.cast(t, value).unwrap();
        buffers.push(Buffer::dense("out", t, &[m, n]));
        let [rows, columns, depth] = self.mnk.map(Size::Const);
        let spec = MatMulSpec {
            exprs: e,
            args: buffers.iter().map(|b| b.dtype).collect(),
            params: 0,
            batch: vec![],
            m: rows,
            n: columns,
            k: depth,
            acc: DType::F32,
            tf32: false,
            a: vec![depth, Size::ONE],
            b_batch: vec![],
            b: Columns::Blocks(Blocks {
                bits: self.bits as u8,
                size: self.size,
                count: Size::Const(count),
                zeros: self.zeros,
                aligned: true,
            }),
            nr: 16,
            out: Index::strided(vec![columns, Size::ONE]),
            value,
        };
        let op = json!({"kind": "block_matmul", "bits": self.bits, "block": self.size});
        let zeros = if self.zeros { "_zeros" } else { "" };
        let name = format!(
            "blocks_{t}_{s}_{}bits_by{}{zeros}_{m}x{n}x{k}",
            self.bits, self.size
        );
        let sizes = Sizes::default();
        let spec = KernelSpec::MatMul(spec);
        Case::new((name, "matmul"), op, spec, buffers, sizes.params)
    }
}

/// Products to check, then those to time.
pub fn cases() -> Vec<Case> {
    use DType::{BF16, F16, F32};
    let product = |dtype, bits, mnk| Product {
        dtype,
        scales: dtype,
        bits,
        size: 32,
        zeros: true,
        mnk,
    };
    let mut all = vec![];
    for dtype in [F16, BF16, F32] {
        for bits in [2, 4, 8] {
            all.push(product(dtype, bits, [3, 37, 288]));
        }
        // More rows than one block, and of a few what fills half of one.
        all.push(product(dtype, 4, [140, 136, 96]));
        all.push(product(dtype, 4, [40, 72, 421]));
        all.push(Product {
            scales: if dtype == F32 { F16 } else { F32 },
            zeros: false,
            size: 128,
            ..product(dtype, 4, [1, 200, 2208])
        });
    }
    all.push(Product {
        size: 16,
        ..product(F16, 4, [5, 37, 72])
    });
    let mut cases: Vec<Case> = all.iter().map(Product::case).collect();
    for (dtype, m) in [
        (F16, 1),
        (BF16, 1),
        (F32, 1),
        (F16, 16),
        (BF16, 512),
        (F16, 4096),
    ] {
        let of = Product {
            zeros: false,
            ..product(dtype, 4, [m, 4096, 4096])
        };
        cases.push(of.case().timed(2 * m * 4096 * 4096));
    }
    cases
}
