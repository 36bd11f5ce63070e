//! Special registers, and other values that are constant while a warp runs.

use super::types::Ty;

/// What a slot is filled with before a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the ISA's own names")]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    ExplicitCluster,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicShared,
    TotalShared,
    /// The address of this `.global` variable of the module.
    GlobalVar(u32),
    /// The address of a shared variable at this offset.
    SharedVar(u32),
    /// The start of the CTA's own shared memory in the cluster's.
    SharedBase,
}

impl Special {
    /// The register that is written so.
    pub fn parse(name: &str) -> Option<Special> {
        let name = name.strip_prefix('%')?;
        let plain = match name {
            "laneid" => Some(Special::Laneid),
            "warpid" => Some(Special::Warpid),
            "nwarpid" => Some(Special::Nwarpid),
            "cluster_ctarank" => Some(Special::ClusterCtarank),
            "cluster_nctarank" => Some(Special::ClusterNctarank),
            "is_explicit_cluster" => Some(Special::ExplicitCluster),
            "lanemask_eq" => Some(Special::LanemaskEq),
            "lanemask_le" => Some(Special::LanemaskLe),
            "lanemask_lt" => Some(Special::LanemaskLt),
            "lanemask_ge" => Some(Special::LanemaskGe),
            "lanemask_gt" => Some(Special::LanemaskGt),
            "dynamic_smem_size" => Some(Special::DynamicShared),
            "total_smem_size" => Some(Special::TotalShared),
            _ => None,
        };
        if plain.is_some() {
            return plain;
        }
        let (name, axis) = name.split_once('.')?;
        let axis = ["x", "y", "z"].iter().position(|a| *a == axis)? as u8;
        match name {
            "tid" => Some(Special::Tid(axis)),
            "ntid" => Some(Special::Ntid(axis)),
            "ctaid" => Some(Special::Ctaid(axis)),
            "nctaid" => Some(Special::Nctaid(axis)),
            "clusterid" => Some(Special::Clusterid(axis)),
            "nclusterid" => Some(Special::Nclusterid(axis)),
            "cluster_ctaid" => Some(Special::ClusterCtaid(axis)),
            "cluster_nctaid" => Some(Special::ClusterNctaid(axis)),
            _ => None,
        }
    }

    /// Its type.
    pub fn ty(self) -> Ty {
        match self {
            Special::ExplicitCluster => Ty::Pred,
            Special::GlobalVar(_) | Special::SharedVar(_) => Ty::U64,
            _ => Ty::U32,
        }
    }
}

/// Where a warp runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Threads of the block.
    pub ntid: [u32; 3],
    /// The block.
    pub ctaid: [u32; 3],
    /// Blocks of the grid.
    pub nctaid: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Whether the launch has clusters.
    pub clustered: bool,
    /// The warp of the block.
    pub warp: u32,
    /// The block's rank in its cluster.
    pub rank: u32,
    /// Dynamic shared memory, bytes.
    pub dynamic: u32,
    /// All shared memory, bytes.
    pub shared: u32,
}

impl Place {
    /// The thread in lane `lane`.
    pub fn thread(&self, lane: usize) -> [u32; 3] {
        let flat = self.warp * 32 + lane as u32;
        let [x, y, _] = self.ntid;
        [flat % x, flat / x % y, flat / x / y]
    }

    /// The value in lane `lane`; addresses of `.global` variables come from `global`.
    pub fn value(&self, special: Special, lane: usize, global: impl Fn(u32) -> u64) -> u64 {
        let l = lane as u32;
        let axis = |values: [u32; 3], axis: u8| values[axis as usize];
        let cluster = |f: fn(u32, u32) -> u32, i: u8| f(axis(self.ctaid, i), axis(self.cluster, i));
        let threads: u32 = self.ntid.iter().product();
        let value = match special {
            Special::Tid(i) => axis(self.thread(lane), i),
            Special::Ntid(i) => axis(self.ntid, i),
            Special::Ctaid(i) => axis(self.ctaid, i),
            Special::Nctaid(i) => axis(self.nctaid, i),
            Special::Laneid => l,
            Special::Warpid => self.warp,
            Special::Nwarpid => threads.div_ceil(32),
            Special::Clusterid(i) => cluster(|a, b| a / b, i),
            Special::Nclusterid(i) => axis(self.nctaid, i) / axis(self.cluster, i),
            Special::ClusterCtaid(i) => cluster(|a, b| a % b, i),
            Special::ClusterNctaid(i) => axis(self.cluster, i),
            Special::ClusterCtarank => self.rank,
            Special::ClusterNctarank => self.cluster.iter().product(),
            Special::ExplicitCluster => self.clustered as u32 * u32::MAX,
            Special::LanemaskEq => 1 << l,
            Special::LanemaskLe => u32::MAX >> (31 - l),
            Special::LanemaskLt => (1 << l) - 1,
            Special::LanemaskGe => u32::MAX << l,
            Special::LanemaskGt => !(u32::MAX >> (31 - l)),
            Special::DynamicShared => self.dynamic,
            Special::TotalShared => self.shared,
            Special::GlobalVar(i) => return global(i),
            Special::SharedVar(offset) => return (self.rank << 24 | offset) as u64,
            Special::SharedBase => self.rank << 24,
        };
        value as u64
    }
}
