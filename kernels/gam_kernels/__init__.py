"""Batched linear algebra of factored low-rank matrices, on torch alone.

Every function works on stacks: a leading dimension ``L`` runs over the modules of one shape, on the
device of the inputs, CPU or CUDA. Nothing here knows what an adapter is.
"""

from gam_kernels._basis import Basis as Basis
from gam_kernels._basis import gram as gram
from gam_kernels._basis import orthonormalize as orthonormalize
from gam_kernels._basis import stacked_gram as stacked_gram
from gam_kernels._delta import Delta as Delta
from gam_kernels._delta import factored_delta as factored_delta
from gam_kernels._delta import norm as norm
from gam_kernels._delta import product_norm as product_norm
from gam_kernels._delta import response as response
from gam_kernels._procrustes import polar as polar
from gam_kernels._procrustes import principal_cosines as principal_cosines
from gam_kernels._procrustes import procrustes as procrustes
from gam_kernels._range import Leading as Leading
from gam_kernels._range import leading_svd as leading_svd
from gam_kernels._span import Span as Span
from gam_kernels._span import span as span
from gam_kernels._svd import compress as compress
from gam_kernels._svd import rank_for_energy as rank_for_energy
from gam_kernels._svd import thin_svd as thin_svd
