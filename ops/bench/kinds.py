"""All proxies by name, in the order of the tables."""

import proxies
from doorman import Doorman

ALL = {
    proxy.name: proxy
    for proxy in (Doorman(), proxies.Nginx(), proxies.HaProxy(), proxies.Envoy(), proxies.EnvoyRoutes())
}
