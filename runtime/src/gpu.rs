//! What a plan says about GPUs: the PTX of each target, and how its kernels are launched.

use crate::device::TensorMap;
pub use crate::tuned::Tuned;
use kiln_ir::{Binding, DType, Dim};
use serde::{Deserialize, Serialize};
use std::fmt;

/// PTX for one GPU target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gpu {
    /// The target's name, which is PTX's: `sm_80`, or `sm_90a` with what one
    /// architecture alone has.
    pub target: String,
    /// The section that holds the text.
    pub section: u32,
    /// The forms of each of the plan's kernels, in their order: a launch takes the first
    /// one that [serves](GpuKernel::serves) its sizes and whose tiles its arguments allow,
    /// unless another one was measured to be faster.
    pub kernels: Vec<Vec<GpuKernel>>,
    /// What was measured, in ascending order of device, kernel and parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuned: Vec<Tuned>,
}

/// Bytes of a launch's status block, which is zeros: a kernel that fails sets the first
/// four to its status.
pub const STATUS_BYTES: usize = 256;

/// A form of a kernel: launches one after the other. Their parameters are, in words of
/// eight bytes: the launch's arguments' addresses, the address of its status block, that of
/// its scratch memory, and the launch's integer parameters; then, each at a multiple of 64,
/// the tensor maps of its tiles.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GpuKernel {
    /// What its sizes must hold, left ≤ right, over `p0`, `p1`, …: the launch's integer
    /// parameters. The last form of a kernel asks for nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<(Dim, Dim)>,
    /// The arguments that it reads by tiles; the last form of a kernel has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiles: Vec<Tile>,
    /// What is launched, at least once.
    pub passes: Vec<Pass>,
    /// Global scratch of its launches, in bytes, over `p0`, `p1`, …; it is not cleared.
    pub scratch: Dim,
    /// What its time is predicted from.
    #[serde(default)]
    pub work: Work,
}

/// What of a chip a form keeps at work. For predictions: nothing that runs reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// What multiplies.
    pub unit: Unit,
    /// What tensor cores multiply.
    #[serde(default)]
    pub factors: Factors,
    /// Of a form for few rows: how many there are, over `p0`, `p1`, …, and how many a
    /// block multiplies whether they exist or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<(Dim, u32)>,
    /// Parts that the first pass's clusters work off in turn; none: each block has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Dim>,
}

/// What of a multiprocessor does a form's arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Lanes.
    #[default]
    Lanes,
    /// Tensor cores by `mma.sync`.
    Mma,
    /// Tensor cores by `wgmma`.
    Wgmma,
}

/// What tensor cores multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factors {
    /// f16 or bf16.
    #[default]
    Halves,
    /// f32 rounded to tf32.
    Tf32,
    /// Floats of eight bits.
    Eights,
    /// Integers of eight bits.
    Bytes,
}

/// A launch of an entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pass {
    /// The entry's name in the module.
    pub entry: String,
    /// Blocks along x, y and z, over `p0`, `p1`, …: the launch's integer parameters.
    /// Where one is 0, nothing is launched.
    pub grid: [Dim; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// Its floating-point operations and the bytes that it moves, where the passes of a form
    /// share the launch's otherwise than that the first one has it all. For predictions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<(Dim, Dim)>,
}

/// How a kernel reads an argument by tiles, which the tensor memory accelerator copies:
/// what a tensor map says. Dimensions go from the innermost one out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tile {
    /// The argument.
    pub arg: u32,
    /// Its elements' type: f16, bf16, f32, f8, i8 or u8.
    pub dtype: DType,
    /// Elements along each dimension, 2 to 5 of them.
    pub sizes: Vec<Dim>,
    /// Elements between neighbours along each dimension but the first, whose neighbours
    /// are next to each other.
    pub strides: Vec<Dim>,
    /// Elements of a tile along each dimension; those of the first are 128 bytes, the
    /// width of the swizzle.
    pub tile: Vec<u32>,
}

/// A launch's sizes as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Blocks along x, y and z, of each pass.
    pub grids: Vec<[u32; 3]>,
    /// Bytes of scratch.
    pub scratch: usize,
}

/// A condition, left ≤ right, that does not hold.
#[derive(Clone, Copy, Debug)]
pub struct Unmet<'a> {
    /// Its left side.
    pub left: &'a Dim,
    /// Its right side.
    pub right: &'a Dim,
    /// Both as numbers, where they have values.
    pub sides: Option<(i64, i64)>,
}

/// Why a launch's sizes do not allow a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// A size is not known, or too large for 64 bits.
    Unknown,
    /// The argument lies at this address.
    Address(u64),
    /// So many elements along a dimension, from the innermost out.
    Size(usize, i64),
    /// So many bytes between neighbours along a dimension.
    Stride(usize, i64),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Unknown => write!(f, "its sizes have no values"),
            Misfit::Address(at) => {
                let off = at % 16;
                write!(f, "it begins {off} bytes behind a multiple of 16")
            }
            Misfit::Size(axis, n) => {
                let most = i32::MAX;
                write!(
                    f,
                    "{n} elements along dimension {axis} are outside 1..={most}"
                )
            }
            Misfit::Stride(axis, n) => write!(
                f,
                "neighbours along dimension {axis} are {n} bytes apart, no multiple of 16 from 16 to 2^40"
            ),
        }
    }
}

/// Blocks along x, y and z that CUDA allows.
const MOST_BLOCKS: [i64; 3] = [i32::MAX as i64, 65535, 65535];
/// Threads along x, y and z that CUDA allows.
const MOST_THREADS: [u32; 3] = [1024, 1024, 64];
/// Threads of a block that CUDA allows.
const MOST_IN_BLOCK: u64 = 1024;
/// Blocks of a cluster, where sizes that not every device has are allowed.
const MOST_IN_CLUSTER: u64 = 16;
/// Bytes of shared memory that a block may have on any architecture so far.
const MOST_SHARED: u32 = 227 << 10;
/// Largest scratch of a launch: beyond it, a size is a mistake.
const MOST_SCRATCH: i64 = 1 << 40;

/// `p0`, `p1`, … as these parameters.
fn named(params: &[i64]) -> Binding {
    (params.iter().enumerate())
        .map(|(i, &p)| (format!("p{i}").into(), p))
        .collect()
}

impl Tile {
    /// The tensor map of the argument at this address in a launch with these parameters;
    /// what is wrong where an address or a distance is no multiple of 16 bytes, or a size
    /// is 0 or beyond what a map holds.
    pub fn map(&self, address: u64, params: &[i64]) -> Result<TensorMap, Misfit> {
        let binding = named(params);
        let elem = self.dtype.size().ok_or(Misfit::Unknown)? as i64;
        let value = |d: &Dim| d.eval(&binding).map_err(|_| Misfit::Unknown);
        if !address.is_multiple_of(16) {
            return Err(Misfit::Address(address));
        }
        let mut sizes = vec![];
        for (axis, d) in self.sizes.iter().enumerate() {
            match value(d)? {
                // Coordinates have a sign.
                n @ 1..=0x7fff_ffff => sizes.push(n as u64),
                n => return Err(Misfit::Size(axis, n)),
            }
        }
        let mut strides = vec![];
        for (axis, d) in (1..).zip(&self.strides) {
            match value(d)?.checked_mul(elem).ok_or(Misfit::Unknown)? {
                n if (16..1 << 40).contains(&n) && n % 16 == 0 => strides.push(n as u64),
                n => return Err(Misfit::Stride(axis, n)),
            }
        }
        Ok(TensorMap {
            dtype: self.dtype,
            address,
            sizes,
            strides,
            tile: self.tile.clone(),
        })
    }

    fn validate(&self) -> Result<(), String> {
        let rank = self.sizes.len();
        let inner = |n: u32| self.dtype.size().unwrap_or(0) as u32 * n;
        let known = [
            DType::F16,
            DType::BF16,
            DType::F32,
            DType::F8E4M3FN,
            DType::F8E5M2,
            DType::I8,
            DType::U8,
        ];
        let fits = known.contains(&self.dtype)
            && (2..=5).contains(&rank)
            && self.strides.len() == rank - 1
            && self.tile.len() == rank
            && self.tile.iter().all(|n| (1..=256).contains(n))
            && inner(self.tile[0]) == 128;
        match fits {
            true => Ok(()),
            false => Err(format!("a tile of {:?} elements", self.tile)),
        }
    }
}

impl GpuKernel {
    /// Whether it serves a launch with these parameters.
    pub fn serves(&self, params: &[i64]) -> bool {
        self.unmet(params).is_none()
    }

    /// The first of its conditions that does not hold.
    pub fn unmet(&self, params: &[i64]) -> Option<Unmet<'_>> {
        let binding = named(params);
        let value = |d: &Dim| d.eval(&binding).ok();
        self.when.iter().find_map(|c| {
            let sides = value(&c.0).zip(value(&c.1));
            match sides {
                Some((a, b)) if a <= b => None,
                _ => Some(Unmet {
                    left: &c.0,
                    right: &c.1,
                    sides,
                }),
            }
        })
    }

    /// The sizes of a launch with these parameters; an error where CUDA has no such
    /// grid.
    pub fn extent(&self, params: &[i64]) -> Result<Extent, String> {
        let binding = named(params);
        let value = |d: &Dim| d.eval(&binding).map_err(|e| e.to_string());
        let mut grids = vec![];
        for pass in &self.passes {
            let mut grid = [0; 3];
            for (axis, (to, d)) in grid.iter_mut().zip(&pass.grid).enumerate() {
                let n = value(d)?;
                if !(0..=MOST_BLOCKS[axis]).contains(&n) {
                    let most = MOST_BLOCKS[axis];
                    return Err(format!(
                        "{n} blocks along axis {axis} are outside 0..={most}"
                    ));
                }
                *to = n as u32;
            }
            grids.push(grid);
        }
        let scratch = value(&self.scratch)?;
        if !(0..=MOST_SCRATCH).contains(&scratch) {
            return Err(format!("{scratch} bytes of scratch are beyond what can be"));
        }
        let scratch = scratch as usize;
        Ok(Extent { grids, scratch })
    }

    fn validate(&self) -> Result<(), String> {
        if self.passes.is_empty() {
            return Err("no launch at all".into());
        }
        self.passes.iter().try_for_each(Pass::validate)?;
        self.tiles.iter().try_for_each(Tile::validate)
    }
}

impl Pass {
    fn validate(&self) -> Result<(), String> {
        let product = |n: &[u32; 3]| n.iter().map(|&n| n as u64).product::<u64>();
        let fits = (self.block.iter().zip(&MOST_THREADS)).all(|(&n, &most)| n <= most);
        if !fits || !(1..=MOST_IN_BLOCK).contains(&product(&self.block)) {
            return Err(format!("blocks of {:?} threads", self.block));
        }
        let beyond = self.cluster.iter().any(|&n| n as u64 > MOST_IN_CLUSTER);
        if beyond || !(1..=MOST_IN_CLUSTER).contains(&product(&self.cluster)) {
            return Err(format!("clusters of {:?} blocks", self.cluster));
        }
        if self.shared > MOST_SHARED {
            return Err(format!("{} bytes of shared memory", self.shared));
        }
        Ok(())
    }
}

impl Gpu {
    /// Checks it against the number of kernels and of sections; what is wrong.
    pub(crate) fn validate(&self, kernels: usize, sections: usize) -> Result<(), String> {
        let name = &self.target;
        if capability(name).is_none() {
            return Err(format!("`{name}` is no GPU target"));
        }
        if self.section as usize >= sections {
            return Err(format!(
                "the PTX for {name} lies in a section that is not there"
            ));
        }
        if self.kernels.len() != kernels {
            let have = self.kernels.len();
            return Err(format!("{have} of {kernels} kernels are there for {name}"));
        }
        for (i, forms) in self.kernels.iter().enumerate() {
            let last = |k: &GpuKernel| k.when.is_empty() && k.tiles.is_empty();
            if !forms.last().is_some_and(last) {
                return Err(format!(
                    "kernel {i} for {name} has no form for every launch"
                ));
            }
            for k in forms {
                k.validate()
                    .map_err(|what| format!("kernel {i} for {name} asks for {what}"))?;
            }
        }
        crate::tuned::validate(&self.tuned, &self.kernels)
            .map_err(|what| format!("what was measured for {name}: {what}"))
    }

    /// Whether a device of this compute capability (major, minor) runs it: its own and
    /// later ones, but its own alone for a target with an architecture's own instructions.
    pub fn runs_on(&self, device: (u32, u32)) -> bool {
        capability(&self.target).is_some_and(|(needs, own)| match own {
            true => device == needs,
            false => device >= needs,
        })
    }
}

/// The compute capability of a target's name, and whether that alone runs it.
pub fn capability(target: &str) -> Option<((u32, u32), bool)> {
    let digits = target.strip_prefix("sm_")?;
    let (digits, own) = match digits.strip_suffix('a') {
        Some(digits) => (digits, true),
        None => (digits, false),
    };
    let plain = (2..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let n: u32 = digits.parse().ok().filter(|_| plain)?;
    Some(((n / 10, n % 10), own))
}

/// The `.version` of PTX text, and the lowest CUDA version whose driver reads it
/// (the table of release notes in NVIDIA's PTX ISA manual).
pub fn ptx_version(text: &str) -> Option<((u32, u32), (u32, u32))> {
    let line = text
        .lines()
        .find_map(|l| l.trim().strip_prefix(".version"))?;
    let (major, minor) = line.split_whitespace().next()?.split_once('.')?;
    let ptx = (major.parse().ok()?, minor.parse().ok()?);
    let cuda = match ptx {
        (8, 6) => (12, 7),
        (8, 7) => (12, 8),
        (8, 8) => (12, 9),
        // From PTX 7.0 with CUDA 11.0 on, the minor versions agree.
        (major, minor) if major >= 7 => (major + 4, minor),
        _ => (11, 0),
    };
    Some((ptx, cuda))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_say_which_devices_run_them() {
        let gpu = |target: &str| Gpu {
            target: target.into(),
            section: 0,
            kernels: vec![],
            tuned: vec![],
        };
        for (target, device, runs) in [
            ("sm_80", (8, 0), true),
            ("sm_80", (7, 5), false),
            ("sm_80", (12, 0), true),
            ("sm_89", (8, 6), false),
            ("sm_90a", (9, 0), true),
            ("sm_90a", (10, 0), false),
            ("sm_120", (12, 0), true),
            ("sm_", (9, 0), false),
            ("sm_+9", (9, 0), false),
        ] {
            assert_eq!(gpu(target).runs_on(device), runs, "{target} on {device:?}");
        }
    }

    #[test]
    fn versions_are_read_from_the_text() {
        let of = |text: &str| ptx_version(text);
        assert_eq!(
            of("// x\n.version 7.1\n.target sm_80\n"),
            Some(((7, 1), (11, 1)))
        );
        assert_eq!(of(".version 8.0"), Some(((8, 0), (12, 0))));
        assert_eq!(of(".version 8.7"), Some(((8, 7), (12, 8))));
        assert_eq!(of(".target sm_80"), None);
        assert_eq!(of(".version eight"), None);
    }

    #[test]
    fn tiles_need_multiples_of_16_bytes() {
        let tile = Tile {
            arg: 0,
            dtype: DType::BF16,
            sizes: ["p0", "p1", "3"].map(|d| d.parse().unwrap()).to_vec(),
            strides: ["p0", "p2"].map(|d| d.parse().unwrap()).to_vec(),
            tile: vec![64, 128, 1],
        };
        assert_eq!(tile.validate(), Ok(()));
        let map = tile.map(256, &[72, 10, 720]).unwrap();
        assert_eq!(map.sizes, [72, 10, 3]);
        assert_eq!(map.strides, [144, 1440]);
        for (address, params, says) in [
            (264, [72, 10, 720], "8 bytes behind a multiple of 16"),
            (256, [70, 10, 720], "dimension 1 are 140 bytes apart"),
            (256, [72, 10, 724], "dimension 2 are 1448 bytes apart"),
            (256, [72, 10, 0], "dimension 2 are 0 bytes apart"),
            (256, [0, 10, 720], "0 elements along dimension 0"),
            (256, [72, -1, 720], "-1 elements along dimension 1"),
            (256, [72, 10, 1 << 39], "bytes apart"),
            (256, [72, 10, i64::MAX], "no values"),
        ] {
            let misfit = tile.map(address, &params).unwrap_err();
            let shown = misfit.to_string();
            assert!(shown.contains(says), "{address} {params:?}: {shown}");
        }
        assert_eq!(tile.map(256, &[72]), Err(Misfit::Unknown));
    }

    #[test]
    fn extents_follow_from_parameters() {
        let kernel = |x: &str, scratch: &str| GpuKernel {
            when: vec![],
            tiles: vec![],
            passes: vec![Pass {
                entry: "k".into(),
                grid: [x.parse().unwrap(), Dim::from(1), Dim::from(1)],
                block: [128, 1, 1],
                cluster: [1; 3],
                shared: 0,
                work: None,
            }],
            scratch: scratch.parse().unwrap(),
            work: Work::default(),
        };
        let k = kernel("(p0 + 127) / 128", "p1 * 4");
        let want = Extent {
            grids: vec![[3, 1, 1]],
            scratch: 40,
        };
        assert_eq!(k.extent(&[300, 10]), Ok(want));
        assert!(k.extent(&[300]).is_err());
        assert!(kernel("p0", "0").extent(&[-1]).is_err());
        assert!(kernel("p0", "0").extent(&[1 << 40]).is_err());
        assert!(kernel("1", "p0").extent(&[-8]).is_err());
    }
}
