"""The page of gam-merge: merges in a browser, on one's own machine or on a server.

``_page`` has the fields and buttons, ``_actions`` what they call, ``_visitors`` the folders in
which it happens, ``_guard`` what of the web server may be reached. Each figure comes from the
library. The page reads no path: adapters are uploaded, or named by their Hub id.
"""

from gam_ui._limits import Limits as Limits
from gam_ui._serve import serve as serve
