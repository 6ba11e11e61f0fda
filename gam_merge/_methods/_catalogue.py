"""The built-in rules, spaces and plug-ins, in the order in which they are listed."""

from gam_merge._methods import dare, della, linear, slerp, spherical, ties
from gam_merge._methods.auto import auto
from gam_merge._methods.breadcrumbs import breadcrumbs
from gam_merge._methods.cart import cart
from gam_merge._methods.consensus import consensus
from gam_merge._methods.copy import copy
from gam_merge._methods.ct_merging import ct_merging
from gam_merge._methods.dc_merge import dc_merge
from gam_merge._methods.frechet import frechet
from gam_merge._methods.gam import gam
from gam_merge._methods.geometric_median import geometric_median
from gam_merge._methods.iso_c import iso_c
from gam_merge._methods.iso_cts import iso_cts, iso_cts_r
from gam_merge._methods.lego import lego
from gam_merge._methods.magmax import magmax
from gam_merge._methods.magnitude import magnitude
from gam_merge._methods.model_stock import model_stock
from gam_merge._methods.np_lora import np_lora
from gam_merge._methods.plugins.isotropize import isotropize
from gam_merge._methods.plugins.norms import mad_cap, norm_equalise
from gam_merge._methods.plugins.pico import pico
from gam_merge._methods.plugins.subspace_boost import subspace_boost
from gam_merge._methods.plugins.svc import svc
from gam_merge._methods.robustmerge import robustmerge
from gam_merge._methods.spaces.core import core_space
from gam_merge._methods.spaces.ctm import ctm
from gam_merge._methods.spaces.delta import delta
from gam_merge._methods.spaces.drm import drm_h, drm_v
from gam_merge._methods.spaces.factor import factor
from gam_merge._methods.spaces.knots import knots
from gam_merge._methods.star import star
from gam_merge._methods.tsvm import tsvm
from gam_merge._methods.wudi import actmat, wudi

RULES = (
    *(auto, gam, frechet, consensus),
    *(linear.mean, linear.total, linear.cat, linear.svd_k),
    *(iso_c, iso_cts, iso_cts_r, tsvm, dc_merge, ct_merging, wudi, actmat, star, cart),
    *(slerp.slerp, slerp.nuslerp, spherical.multislerp, spherical.karcher),
    *(model_stock, geometric_median),
    *(ties.ties, ties.untrimmed, magnitude, magmax, breadcrumbs),
    *(dare.dare, dare.dare_ties, della.della, della.della_linear),
    *(np_lora, robustmerge, lego),
    copy,
)
SPACES = (core_space, knots, drm_h, drm_v, ctm, factor, delta)
PLUGINS = (norm_equalise, mad_cap, pico, svc, subspace_boost, isotropize)
