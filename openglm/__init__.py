"""openglm: serve, use and train GLM-4.5, GLM-4.5-Air and GLM-4.6 with one model definition.

Importing this package loads no torch and starts nothing; pick what you need from its subpackages.
"""

__version__ = "0.1.0"
