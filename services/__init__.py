<<<<<<< HEAD
"""The five Lares services and the kit they share."""
=======
"""The five services and the kit they share. No service imports another: they meet over `lares`."""
>>>>>>> kit
