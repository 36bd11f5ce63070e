//! Convolutions, channels last: types, strides, borders, groups; depthwise ones.

use crate::case::{Buffer, Case, Layout, Sizes, dense_strides};
use kiln_ir::{BinaryFn, DType};
use kiln_kernels::conv::ConvSpec;
use kiln_kernels::{Exprs, Index, KernelSpec, Size};
use serde_json::json;

/// A convolution of a square image with square filters.
#[derive(Clone, Debug)]
struct Conv {
    dtype: DType,
    batch: i64,
    side: i64,
    kernel: i64,
    stride: i64,
    dilation: i64,
    /// On every side.
    pad: i64,
    groups: i64,
    /// Channels and filters of a group.
    depth: i64,
    filters: i64,
    /// Columns of a panel; 0: depthwise.
    nr: i64,
    /// `max(sum + bias, 0)`.
    bias: bool,
}

impl Conv {
    fn new(dtype: DType, kernel: i64, depth: i64, filters: i64) -> Conv {
        Conv {
            dtype,
            batch: 1,
            side: 9,
            kernel,
            stride: 1,
            dilation: 1,
            pad: kernel / 2,
            groups: 1,
            depth,
            filters,
            nr: 64,
            bias: false,
        }
    }

    fn depthwise(dtype: DType, kernel: i64, channels: i64) -> Conv {
        Conv {
            groups: channels,
            nr: 0,
            ..Conv::new(dtype, kernel, 1, 1)
        }
    }

    fn of_bytes(&self) -> bool {
        self.dtype.bits() == 8
    }

    fn output(&self) -> i64 {
        let span = (self.kernel - 1) * self.dilation + 1;
        (self.side + 2 * self.pad - span) / self.stride + 1
    }

    fn name(&self) -> String {
        let family = if self.nr == 0 { "depthwise" } else { "conv" };
        let mut name = format!("{family}_{}_{}", self.dtype, self.batch);
        name += &format!("x{}x{}", self.side, self.groups * self.depth);
        name += &format!(
            "_to_{}_{}x{}",
            self.groups * self.filters,
            self.kernel,
            self.kernel
        );
        name += &format!("_by_{}_pad_{}", self.stride, self.pad);
        for (is, what) in [
            (self.dilation > 1, "dilated"),
            (self.groups > 1 && self.nr > 0, "groups"),
            (self.bias, "bias"),
        ] {
            name += &if is {
                format!("_{what}")
            } else {
                String::new()
            };
        }
        name
    }

    /// The filters, `[taps][depth][filters]`.
    fn weights(&self) -> Buffer {
        let taps = self.kernel * self.kernel;
        let (dtype, pad) = match self.of_bytes() {
            true => (DType::I8, 4),
            false => (self.dtype, 1),
        };
        let up = |n: i64| (n + pad - 1) / pad * pad;
        let joined = self.of_bytes() && (self.nr == 0 || self.pad == 0 && self.groups == 1);
        let run = if joined { self.kernel } else { 1 };
        let rows = taps / run * up(run * self.depth);
        let channels = self.groups * self.filters;
        let (layout, elements) = match self.nr {
            0 => (Layout::Depthwise { pad, run }, rows * channels),
            nr => {
                let panels = self.groups * ((self.filters + nr - 1) / nr);
                let groups = self.groups;
                let layout = Layout::Filters {
                    groups,
                    nr,
                    pad,
                    run,
                };
                (layout, panels * rows * nr)
            }
        };
        Buffer {
            role: "w",
            dtype,
            shape: vec![taps, self.depth, channels],
            layout,
            elements,
        }
    }

    fn case(&self) -> Case {
        let (channels, filters) = (self.groups * self.depth, self.groups * self.filters);
        let (side, output) = (self.side, self.output());
        let acc = if self.of_bytes() {
            DType::I32
        } else {
            DType::F32
        };
        let plain = self.of_bytes() && !self.bias;
        let out_type = if plain { DType::I32 } else { DType::F32 };
        let mut buffers = vec![
            Buffer::dense("x", self.dtype, &[self.batch, side, side, channels]),
            self.weights(),
        ];
        let around = self.of_bytes() && self.pad > 0;
        if around {
            buffers.push(Buffer::dense("around", self.dtype, &[1]));
        }
        let shape = [self.batch, output, output, filters];
        let mut e = Exprs::new();
        let mut value = e.acc(0, acc).unwrap();
        value = e.cast(out_type, value).unwrap();
        if self.bias {
            let at = buffers.len() as u16;
            let index = Index::strided([Size::ZERO, Size::ZERO, Size::ZERO, Size::ONE]);
            let bias = e.load(at, DType::F32, index).unwrap();
            let zero = e.f32(0.0);
            value = e.binary(BinaryFn::Add, value, bias).unwrap();
            value = e.binary(BinaryFn::Max, value, zero).unwrap();
            buffers.push(Buffer::dense("bias", DType::F32, &[filters]));
        }
        buffers.push(Buffer::dense("out", out_type, &shape));
        let mut sizes = Sizes::default();
        let out = Index::strided(sizes.strides(&dense_strides(&shape)));
        let c = Size::Const;
        let spec = ConvSpec {
            exprs: e,
            args: buffers.iter().map(|b| b.dtype).collect(),
            params: 0,
            batch: c(self.batch),
            input: vec![c(side); 2],
            output: vec![c(output); 2],
            channels,
            filters,
            groups: self.groups,
            kernel: vec![self.kernel; 2],
            strides: vec![self.stride; 2],
            dilations: vec![self.dilation; 2],
            lo: vec![c(self.pad); 2],
            pad: around,
            bordered: self.pad > 0,
            nr: self.nr,
            winograd: false,
            out,
            value,
        };
        let op = json!({"kind": "conv", "kernel": self.kernel, "stride": self.stride,
            "dilation": self.dilation, "pad": self.pad, "groups": self.groups});
        let family = if self.nr == 0 { "depthwise" } else { "conv" };
        let name = (self.name(), family);
        Case::new(name, op, KernelSpec::Conv(spec), buffers, vec![])
    }

    fn timed(&self) -> Case {
        let pixels = self.batch * self.output() * self.output();
        let taps = self.kernel * self.kernel * self.depth;
        self.case()
            .timed(2 * pixels * taps * self.groups * self.filters)
    }
}

/// Convolutions to check, then those to time.
pub fn cases() -> Vec<Case> {
    use DType::{BF16, F16, F32, I8, U8};
    let mut all = vec![];
    for dtype in [F32, BF16, F16, U8, I8] {
        all.push(Conv::new(dtype, 3, 17, 70));
        all.push(Conv::depthwise(dtype, 3, 33));
    }
    for dtype in [F32, U8] {
        all.extend([
            Conv {
                batch: 2,
                stride: 2,
                bias: true,
                ..Conv::new(dtype, 5, 3, 20)
            },
            Conv {
                pad: 0,
                ..Conv::new(dtype, 3, 5, 16)
            },
            Conv {
                groups: 3,
                dilation: 2,
                pad: 2,
                ..Conv::new(dtype, 3, 8, 16)
            },
            Conv {
                stride: 2,
                bias: true,
                ..Conv::depthwise(dtype, 5, 48)
            },
        ]);
    }
    let mut cases: Vec<Case> = all.iter().map(Conv::case).collect();
    let resnet = Conv {
        batch: 32,
        side: 56,
        ..Conv::new(F32, 3, 64, 64)
    };
    let mobile = Conv {
        batch: 32,
        side: 56,
        ..Conv::depthwise(F32, 3, 144)
    };
    cases.extend([resnet.timed(), mobile.timed()]);
    cases
}
