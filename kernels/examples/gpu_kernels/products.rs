//! Contractions: every way of B, types, tails, epilogues, one row; the large ones.

use crate::case::{Buffer, Case, Layout, Sizes, dense_strides};
use kiln_ir::{BinaryFn, DType, UnaryFn};
use kiln_kernels::matmul::{Columns, MatMulSpec};
use kiln_kernels::{ExprId, Exprs, Index, KernelSpec, Size};
use serde_json::json;

/// Columns of a panel.
const NR: i64 = 64;

/// How B lies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum B {
    /// `[n/nr][k][nr]`.
    Packed,
    /// Words of neighbours along k.
    Words,
    /// `[k][n]`.
    Rows,
    /// `[n][k]`: neighbours along k lie together.
    KMajor,
}

/// What is done with a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Epilogue {
    None,
    /// `relu(sum + bias[n])`.
    BiasRelu,
    /// `gelu(sum + bias[n])`.
    BiasGelu,
    /// `tanh(sum + bias[n]) + residual[m, n]`.
    BiasTanhResidual,
    /// `sum · scale[n] + bias[n]`, of integers.
    Scaled,
}

#[derive(Clone, Debug)]
struct Product {
    batch: Vec<i64>,
    m: i64,
    n: i64,
    k: i64,
    types: [DType; 2],
    /// A and B hold numbers of tf32.
    tf32: bool,
    out: DType,
    b: B,
    epilogue: Epilogue,
    /// All batches have one B.
    shared: bool,
    /// A lies as `[k][m]`.
    a_turned: bool,
    open: bool,
}

impl Product {
    fn new(types: [DType; 2], b: B, [m, n, k]: [i64; 3]) -> Product {
        let integers = types.iter().all(|t| t.is_int());
        let eights = types.iter().all(|t| t.is_float() && t.bits() == 8);
        Product {
            batch: vec![],
            m,
            n,
            k,
            types,
            tf32: false,
            out: match (integers, eights) {
                (true, _) => DType::I32,
                (_, true) => DType::F32,
                _ => types[0],
            },
            b,
            epilogue: Epilogue::None,
            shared: false,
            a_turned: false,
            open: false,
        }
    }

    /// One of tf32, B by columns.
    fn tf32(size: [i64; 3]) -> Product {
        Product {
            tf32: true,
            ..Product::new([DType::F32; 2], B::KMajor, size)
        }
    }

    fn acc(&self) -> DType {
        match self.types.iter().all(|t| t.is_int()) {
            true => DType::I32,
            false => DType::F32,
        }
    }

    fn name(&self) -> String {
        let [a, b] = self.types;
        let batch: String = self.batch.iter().map(|n| format!("{n}x")).collect();
        let mut name = format!("matmul_{a}_{b}_{:?}_{batch}", self.b).to_lowercase();
        name += &format!("{}x{}x{}", self.m, self.n, self.k);
        for (is, what) in [
            (self.epilogue != Epilogue::None, "epilogue"),
            (self.shared, "shared"),
            (self.a_turned, "turned"),
            (self.open, "open"),
            (self.tf32, "tf32"),
        ] {
            name += &if is {
                format!("_{what}")
            } else {
                String::new()
            };
        }
        if self.epilogue != Epilogue::None {
            name = name.replace("epilogue", &format!("{:?}", self.epilogue).to_lowercase());
        }
        name
    }

    /// The buffer of B.
    fn b_buffer(&self) -> Buffer {
        let (n, k) = (self.n, self.k);
        let batch = if self.shared { &[] } else { &self.batch[..] };
        let shape: Vec<i64> = batch.iter().copied().chain([k, n]).collect();
        let whole: i64 = batch.iter().product();
        let group = match self.b {
            B::Words => 4 / self.types[1].size().unwrap_or(1) as i64,
            _ => 1,
        };
        match self.b {
            B::Packed | B::Words => Buffer {
                role: "b",
                dtype: self.types[1],
                shape,
                layout: Layout::Panels { nr: NR, group },
                elements: whole * self.panel_elements(group),
            },
            B::Rows => Buffer::dense("b", self.types[1], &shape),
            B::KMajor => {
                let mut strides = dense_strides(&shape);
                let rank = strides.len();
                (strides[rank - 2], strides[rank - 1]) = (1, k);
                Buffer::strided("b", self.types[1], &shape, &strides)
            }
        }
    }

    fn panel_elements(&self, group: i64) -> i64 {
        (self.n + NR - 1) / NR * NR * ((self.k + group - 1) / group * group)
    }

    /// The epilogue's value and its buffers.
    fn epilogue(&self, e: &mut Exprs) -> (ExprId, Vec<Buffer>) {
        let f = DType::F32;
        let rank = self.batch.len();
        let mut value = e.acc(0, self.acc()).unwrap();
        let mut buffers = vec![];
        let mut column = vec![Size::ZERO; rank + 1];
        column.push(Size::ONE);
        let column = Index::strided(column);
        if self.epilogue == Epilogue::Scaled {
            value = e.cast(f, value).unwrap();
            let scale = e.load(2, f, column.clone()).unwrap();
            value = e.binary(BinaryFn::Mul, value, scale).unwrap();
            buffers.push(Buffer::dense("scale", f, &[self.n]));
        }
        if self.epilogue != Epilogue::None {
            let at = 2 + buffers.len() as u16;
            let bias = e.load(at, f, column).unwrap();
            value = e.binary(BinaryFn::Add, value, bias).unwrap();
            buffers.push(Buffer::dense("bias", f, &[self.n]));
        }
        match self.epilogue {
            Epilogue::None | Epilogue::Scaled => {}
            Epilogue::BiasRelu => {
                let zero = e.f32(0.0);
                value = e.binary(BinaryFn::Max, value, zero).unwrap();
            }
            Epilogue::BiasGelu => {
                let share = e.unary(UnaryFn::NormalCdf, value).unwrap();
                value = e.binary(BinaryFn::Mul, value, share).unwrap();
            }
            Epilogue::BiasTanhResidual => {
                let shape: Vec<i64> = self.batch.iter().copied().chain([self.m, self.n]).collect();
                let strides = dense_strides(&shape).into_iter().map(Size::Const);
                let residual = e.load(3, f, Index::strided(strides)).unwrap();
                let tanh = e.unary(UnaryFn::Tanh, value).unwrap();
                value = e.binary(BinaryFn::Add, tanh, residual).unwrap();
                buffers.push(Buffer::dense("residual", f, &shape));
            }
        }
        (e.cast(self.out, value).unwrap(), buffers)
    }

    fn case(&self) -> Case {
        let rank = self.batch.len();
        let (m, n, k) = (self.m, self.n, self.k);
        let shape =
            |ends: [i64; 2]| -> Vec<i64> { self.batch.iter().copied().chain(ends).collect() };
        let mut a_strides = dense_strides(&shape([m, k]));
        if self.a_turned {
            (a_strides[rank], a_strides[rank + 1]) = (1, m);
        }
        let mut sizes = Sizes {
            open: self.open,
            ..Sizes::default()
        };
        let mut e = Exprs::new();
        let (value, more) = self.epilogue(&mut e);
        let b = self.b_buffer();
        let b_batch = match &b.layout {
            Layout::Strides(s) if !self.shared => sizes.strides(&s[..rank]),
            _ => vec![Size::ZERO; rank],
        };
        let columns = match self.b {
            B::Packed => Columns::Packed,
            B::Words => Columns::Grouped,
            B::Rows => Columns::Strided {
                row: sizes.size(n),
                column: Size::ONE,
            },
            B::KMajor => Columns::Strided {
                row: Size::ONE,
                column: sizes.size(k),
            },
        };
        let mut buffers = vec![
            Buffer::strided("a", self.types[0], &shape([m, k]), &a_strides),
            b,
        ];
        buffers.extend(more);
        buffers.push(Buffer::dense("out", self.out, &shape([m, n])));
        let out = sizes.strides(&dense_strides(&shape([m, n])));
        let a = sizes.strides(&a_strides);
        let batch = self.batch.iter().map(|&d| sizes.size(d)).collect();
        let [m_size, n_size, k_size] = [m, n, k].map(|d| sizes.size(d));
        let spec = MatMulSpec {
            exprs: e,
            args: buffers.iter().map(|b| b.dtype).collect(),
            params: sizes.params.len() as u16,
            batch,
            m: m_size,
            n: n_size,
            k: k_size,
            acc: self.acc(),
            tf32: self.tf32,
            a,
            b_batch,
            b: columns,
            nr: NR,
            out: Index::strided(out),
            value,
        };
        let epilogue = format!("{:?}", self.epilogue);
        let op = json!({"kind": "matmul", "epilogue": epilogue, "tf32": self.tf32});
        let name = (self.name(), "matmul");
        Case::new(name, op, KernelSpec::MatMul(spec), buffers, sizes.params)
    }

    fn timed(&self) -> Case {
        self.case().timed(2 * self.m * self.n * self.k)
    }
}

/// Products to check, then those to time.
pub fn cases() -> Vec<Case> {
    use DType::{BF16, F8E4M3FN as E4, F8E5M2 as E5, F16, F32, I8, U8};
    let mut all = vec![];
    // Every way of B by type, with tails along each axis.
    for (types, ways) in [
        ([F32; 2], &[B::Packed, B::Rows, B::KMajor][..]),
        ([BF16; 2], &[B::Packed, B::Words, B::Rows, B::KMajor]),
        ([F16; 2], &[B::Packed, B::Rows, B::KMajor]),
        ([I8; 2], &[B::Words, B::Rows, B::KMajor]),
        ([U8, I8], &[B::Words]),
    ] {
        all.extend(ways.iter().map(|&b| Product::new(types, b, [67, 130, 83])));
    }
    // Rows at multiples of 16 bytes, a block's own sizes; one row, as when decoding.
    for (types, b) in [
        ([F32; 2], B::Packed),
        ([BF16; 2], B::KMajor),
        ([BF16; 2], B::Words),
        ([F16; 2], B::KMajor),
        ([I8; 2], B::Words),
    ] {
        all.push(Product::new(types, b, [128, 136, 192]));
        all.push(Product::new(types, b, [1, 200, 256]));
    }
    // Several blocks along both axes, whatever the target's blocks are.
    for (types, b) in [
        ([BF16; 2], B::KMajor),
        ([BF16; 2], B::Words),
        ([I8; 2], B::Words),
        ([I8; 2], B::KMajor),
    ] {
        all.push(Product::new(types, b, [260, 264, 160]));
    }
    // Of f8: of both kinds and of one, as below.
    for size in [
        [67, 130, 83],
        [128, 136, 192],
        [1, 200, 256],
        [260, 264, 320],
    ] {
        for types in [[E4; 2], [E5, E4]] {
            all.push(Product::new(types, B::KMajor, size));
        }
    }
    // Of tf32: tails and aligned rows, one row, several blocks, clusters with batches.
    for size in [
        [67, 130, 83],
        [128, 136, 192],
        [1, 200, 256],
        [260, 264, 160],
    ] {
        all.push(Product::tf32(size));
    }
    all.push(Product {
        epilogue: Epilogue::BiasTanhResidual,
        batch: vec![2],
        open: true,
        ..Product::tf32([200, 136, 64])
    });
    let whole = |types, b| Product::new(types, b, [40, 72, 96]);
    for (types, b) in [
        ([F32; 2], B::Packed),
        ([BF16; 2], B::KMajor),
        ([BF16; 2], B::Words),
    ] {
        for epilogue in [Epilogue::BiasGelu, Epilogue::BiasTanhResidual] {
            let out = if epilogue == Epilogue::BiasGelu {
                types[0]
            } else {
                F32
            };
            all.push(Product {
                epilogue,
                out,
                ..whole(types, b)
            });
        }
        all.push(Product {
            open: true,
            ..whole(types, b)
        });
    }
    all.extend([
        Product {
            epilogue: Epilogue::BiasRelu,
            ..whole([F16; 2], B::KMajor)
        },
        Product {
            epilogue: Epilogue::Scaled,
            out: F32,
            ..whole([I8; 2], B::Words)
        },
        Product {
            epilogue: Epilogue::Scaled,
            out: F32,
            ..whole([U8, I8], B::Words)
        },
        Product {
            out: F32,
            ..whole([F32, BF16], B::Packed)
        },
        Product {
            out: F32,
            ..whole([F32, I8], B::Packed)
        },
        Product {
            a_turned: true,
            ..whole([F32; 2], B::Rows)
        },
        Product {
            batch: vec![2, 3],
            ..whole([F32; 2], B::KMajor)
        },
        Product {
            batch: vec![3],
            ..whole([BF16; 2], B::KMajor)
        },
        Product {
            batch: vec![3],
            shared: true,
            ..whole([BF16; 2], B::Words)
        },
        // Clusters that work off several parts, with tails along each axis.
        Product {
            epilogue: Epilogue::BiasGelu,
            ..Product::new([F16; 2], B::KMajor, [600, 520, 328])
        },
        Product {
            batch: vec![2],
            open: true,
            ..Product::new([BF16; 2], B::KMajor, [200, 136, 64])
        },
    ]);
    let mut cases: Vec<Case> = all.iter().map(Product::case).collect();
    for (types, b, size) in [
        ([BF16; 2], B::KMajor, [4096, 4096, 4096]),
        ([BF16; 2], B::KMajor, [8192, 8192, 8192]),
        ([BF16; 2], B::KMajor, [16, 4096, 4096]),
        ([BF16; 2], B::KMajor, [1, 4096, 4096]),
        ([BF16; 2], B::Words, [4096, 4096, 4096]),
        ([BF16; 2], B::Words, [8192, 8192, 8192]),
        ([BF16; 2], B::Words, [16, 4096, 4096]),
        ([F32; 2], B::Packed, [2048, 2048, 2048]),
        ([I8; 2], B::Words, [4096, 4096, 4096]),
        ([I8; 2], B::KMajor, [4096, 4096, 4096]),
    ] {
        cases.push(Product::new(types, b, size).timed());
    }
    cases.push(Product::tf32([4096, 4096, 4096]).timed());
    let eights = Product::new([E4; 2], B::KMajor, [4096, 4096, 4096]);
    cases.push(
        Product {
            out: BF16,
            ..eights
        }
        .timed(),
    );
    let fused = Product::new([BF16; 2], B::KMajor, [4096, 4096, 1024]);
    cases.push(
        Product {
            epilogue: Epilogue::BiasGelu,
            ..fused
        }
        .timed(),
    );
    cases
}
