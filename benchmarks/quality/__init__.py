"""Quality of samples at equal cost: GGM beside MDLM, SEDD, uniform diffusion and an autoregressive model."""
