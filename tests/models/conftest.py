"""Every function of the packed forward is called with its shapes checked here."""

from shape_letters import check_module

from prefloop.models import forward

check_module(forward)
